"""List the runs below directories, using the index."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmstune.config.paths.runs import holds_run
from fmstune.report.index import RunIndex, index_path, now
from fmstune.report.summary import RunDetail, RunLine, current_status, read_summary
from fmstune.report.walk import FoundRun, Walk

_AT_ONCE = 500
"""The number of runs to read before writing to the index, so that an interrupted command does not lose
all."""


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run in a list. `detail` is filled only on request."""

    path: str
    status: str
    line: RunLine
    detail: RunDetail


def list_runs(
    named: Sequence[Path],
    *,
    detailed: bool = False,
    moved: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> tuple[list[ListedRun], list[str]]:
    """Return the runs in and below directories, newest first, and the directories that could not be read.

    `moved` is called with the progress of reading journals. Raises `ConfigError` if a given path is not a
    directory.
    """
    walk = Walk()
    runs = walk.below(named)
    index = RunIndex(index_path())
    try:
        lines = index.lines(runs)
        details = index.details(runs) if detailed else {}
        unknown = [run for run in runs if run.real not in lines or (detailed and run.real not in details)]
        _read(unknown, index, lines, details, moved)
        if not walk.unreadable:
            _drop_deleted(named, runs, index)
    finally:
        index.close()
    listed = [
        ListedRun(run.path, current_status(Path(run.real), line), line, details.get(run.real, RunDetail()))
        for run in runs
        if (line := lines.get(run.real)) is not None
    ]
    listed.sort(key=lambda run: (-(run.line.created or 0.0), run.path))
    return listed, walk.unreadable


def _read(
    unknown: Sequence[FoundRun],
    index: RunIndex,
    lines: dict[str, RunLine],
    details: dict[str, RunDetail],
    moved: Callable[[str, int, int], None],
) -> None:
    for start in range(0, len(unknown), _AT_ONCE):
        read_at, read = now(), []
        for number, run in enumerate(unknown[start : start + _AT_ONCE], start):
            moved("reading journals", number, len(unknown))
            line, detail = read_summary(Path(run.real))
            if line.problem and not holds_run(Path(run.real)):
                continue  # removed or moved meanwhile
            lines[run.real], details[run.real] = line, detail
            read.append((run, line, detail))
        index.add(read, read_at=read_at)


def _drop_deleted(named: Sequence[Path], runs: Sequence[FoundRun], index: RunIndex) -> None:
    """Remove deleted runs from the index."""
    found = {run.real for run in runs}
    for folder in named or [Path("runs")]:
        index.forget(path for path in index.below(os.path.realpath(folder)) if path not in found)
