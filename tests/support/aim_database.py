"""Copies the database of a new Aim repository from one that Aim created.

Aim creates it with alembic, in a subprocess that takes a second, and tests create a hundred repositories.
A process that imports this module copies the database where there is none yet; Aim opens existing ones.
Processes that are not forked from warm interpreters let Aim create theirs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from aim.storage.structured import db

MADE = "PYTEST_AIM_DATABASE"
"""The variable with the path of the database to copy."""
_upgrade = db.upgrade_database


def _copied(url: str) -> None:
    made, path = os.environ.get(MADE), Path(url.removeprefix("sqlite:///"))
    if made is None or path.exists():
        _upgrade(url)
        return
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    shutil.copyfile(made, unfinished)
    unfinished.rename(path)


db.upgrade_database = _copied
