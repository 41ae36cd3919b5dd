"""Walk the files of a folder that a user names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def files_below(folder: Path, skipped: Callable[[Path], bool] = lambda path: False) -> Iterator[Path]:
    """Everything but folders in a folder and its subfolders, in the order of their names. Linked folders are
    followed, except into a folder that contains the link. Nothing `skipped` is entered.

    Raises `OSError` for a folder that cannot be read, which `Path.rglob` leaves out.
    """
    yield from _descend(folder, skipped, frozenset())


def _descend(folder: Path, skipped: Callable[[Path], bool], within: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in within:
        return
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in found:
        path = folder / name
        if skipped(path):
            continue
        if is_folder:
            yield from _descend(path, skipped, within | {real})
        else:
            yield path
