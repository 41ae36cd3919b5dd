"""Find runs by name, and suggest one for a name that does not exist."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR
from fmstune.text import shown_path

RUNS = Path("runs")
"""The parent of run directories that the user did not name."""


def holds_run(directory: Path) -> bool:
    """Whether a directory holds a run, even if it is not readable."""
    tracking = directory / TRACKING_DIR
    closed = os.path.lexists(tracking) and not os.access(tracking, os.X_OK)
    return closed or os.path.lexists(tracking / JOURNAL_NAME)


def means_run(named: str, base: Path = Path()) -> bool:
    """Whether a name (relative to `base`) that does not exist means a run rather than a name on the hub: it
    starts with `runs/`, or its parent directory holds runs."""
    path = Path(named)
    if path.parent == Path():
        return False
    return path.parts[0] == RUNS.name or any(map(holds_run, _inside(base / path.parent)))


def no_such_run(path: Path) -> str:
    """A message that a directory does not exist, with the nearest run."""
    return f"there is no directory {shown_path(path)}.{nearest_run(path)}"


def nearest_run(path: Path) -> str:
    """` Did you mean runs/x?`: the run with the closest directory, in the same directory or in `runs/`, or
    the one of this name (`--name`); else the newest of these; or an empty string."""
    import difflib  # only for errors

    found = {
        directory.name: directory
        for folder in (RUNS, path.parent)
        for directory in _inside(folder)
        if directory != path and holds_run(directory)
    }
    close = difflib.get_close_matches(path.name, found, n=1, cutoff=0.6)
    if not close and len(path.name) > 3:  # a part of a long name
        close = sorted(name for name in found if path.name in name)[-1:]
    if called := [directory for directory in found.values() if _name_of(directory) == path.name]:
        return f" Did you mean {shown_path(max(called, key=_changed))}, the run of this name?"
    if close:
        return f" Did you mean {shown_path(found[close[0]])}?"
    if not found:
        return ""
    newest = max(found.values(), key=_changed)
    return f" The newest run is {shown_path(newest)}; `fmstune runs list` shows all."


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError, ValueError):  # it does not exist, or is not a folder, or not a path
        return [folder / entry.name for entry in os.scandir(folder) if entry.is_dir()]
    return []


def _name_of(directory: Path) -> str | None:
    """The name that a run was given, apart from its directory."""
    import tomli

    with contextlib.suppress(OSError, ValueError):
        named: str | None = (
            tomli.loads((directory / CONFIG_NAME).read_text("utf-8")).get("run", {}).get("name")
        )
        return named
    return None


def _changed(directory: Path) -> float:
    with contextlib.suppress(OSError):
        return (directory / TRACKING_DIR / JOURNAL_NAME).stat().st_mtime
    return 0.0
