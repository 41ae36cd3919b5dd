"""The database of a new Aim repository is copied from one that Aim has made.

Aim has alembic make it, in a process of its own that takes a second; tests begin a hundred repositories. What
imports this copies it where there is none yet, and leaves one that is there to Aim. Processes that are not
forked from warm ones let Aim make theirs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from aim.storage.structured import db

MADE = "PYTEST_AIM_DATABASE"
"""Names the database to copy."""
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
