"""What somebody may have meant who names a run that is not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.text import shown_path

RUNS = Path("runs")
"""Where a run goes that nobody has named a directory for."""


def holds_run(directory: Path) -> bool:
    """Whether a directory holds a run, readable or not."""
    return os.path.lexists(directory / TRACKING_DIR / JOURNAL_NAME)


def means_run(named: str, base: Path = Path()) -> bool:
    """Whether a name (from `base`) that is no directory is one of a run, and no name on the hub: it begins
    with `runs/`, or the directory that it names holds runs."""
    path = Path(named)
    if path.parent == Path():
        return False
    return path.parts[0] == RUNS.name or any(map(holds_run, _inside(base / path.parent)))


def no_such_run(path: Path) -> str:
    """That there is no such directory, and which run is the nearest one."""
    return f"there is no directory {shown_path(path)}.{nearest_run(path)}"


def nearest_run(path: Path) -> str:
    """` Did you mean runs/x?`: the run whose name is close, beside the one that is named and in `runs/`; else
    the newest one of these; or nothing."""
    import difflib  # only when something is wrong

    found = {
        directory.name: directory
        for folder in (RUNS, path.parent)
        for directory in _inside(folder)
        if directory != path and holds_run(directory)
    }
    close = difflib.get_close_matches(path.name, found, n=1, cutoff=0.6)
    if not close and len(path.name) > 3:  # the beginning, or the end, of a long name
        close = sorted(name for name in found if path.name in name)[-1:]
    if close:
        return f" Did you mean {shown_path(found[close[0]])}?"
    if not found:
        return ""
    newest = max(found.values(), key=_changed)
    return f" The newest run is {shown_path(newest)}; `fmstune runs list` shows all."


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError, ValueError):  # it does not exist, or is no folder, or no path
        return [folder / entry.name for entry in os.scandir(folder) if entry.is_dir()]
    return []


def _changed(directory: Path) -> float:
    with contextlib.suppress(OSError):
        return (directory / TRACKING_DIR / JOURNAL_NAME).stat().st_mtime
    return 0.0
