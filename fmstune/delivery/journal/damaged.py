"""Keep damaged files next to their replacements."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIX = ".damaged"


def set_aside(path: Path) -> Path:
    """Rename `path` to the first free name that marks it as damaged. Raises `OSError`."""
    aside, number = path.with_name(path.name + SUFFIX), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}{SUFFIX}-{number}")
    path.replace(aside)
    return aside
