"""Summarise a run for lists: its line in the table, and the fields to filter and sort by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.config.inspect.compare import flat, read_tables
from fmstune.delivery.journal.events import later_kinds
from fmstune.delivery.journal.reader import JournalError, LaterJournal, is_being_written
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR
from fmstune.report.replay import SETTINGS, Replay, replay
from fmstune.text import counted
from fmstune.trackers.values.plain import plain

RUNNING, KILLED, DAMAGED, LATER, UNREADABLE = "running", "killed", "damaged", "later version", "unreadable"
"""States of a run that its journal does not record."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run's line in the table. `status` is how it ended, or that it was running when its journal was read;
    `None` if its journal has no end, and no process was writing it. Times are in Unix seconds; `seconds` is
    the total running time of its processes. `problem` is why its journal cannot be read; nothing else is
    known then."""

    name: str = ""
    status: str | None = None
    error: str | None = None
    created: float | None = None
    ended: float | None = None
    seconds: float | None = None
    step: int | float | None = None
    model: str | None = None
    method: str | None = None
    data: str | None = None
    loss: Any = None
    eval: Any = None
    params: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RunDetail:
    """The other fields to select runs by: its id, its settings as tables, its params by namespace, the last
    value of each metric by `stage/name`; and how complete its journal is."""

    id: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    sessions: int = 0
    events: int = 0
    damaged: int = 0
    repeated: int = 0
    missing: int = 0
    later: Mapping[str, int] = field(default_factory=dict)


def unread(run: Replay | RunDetail) -> list[str]:
    """What is missing of a run's journal or could not be read, in words."""
    found = [f"{counted(run.missing, 'event')} missing"] if run.missing else []
    found += [counted(run.damaged, "damaged line")] if run.damaged else []
    found += [counted(run.repeated, "repeated line")] if run.repeated else []
    if run.later:
        count = counted(sum(run.later.values()), "event")
        found.append(f"{count} that this fmstune cannot read: {later_kinds(run.later)}")
    return found


def journal_of(directory: Path) -> Path:
    """The path of the journal of the run in a directory."""
    return directory / TRACKING_DIR / JOURNAL_NAME


def joined(stage: str | None, name: str) -> str:
    """A metric's stage and name, joined."""
    return name if stage is None else f"{stage}/{name}"


def read_summary(directory: Path) -> tuple[RunLine, RunDetail]:
    """Summarise a run from its files. One that cannot be read gives a line with its problem."""
    try:
        run = replay(journal_of(directory))
    except LaterJournal as error:
        return RunLine(name=directory.name, status=LATER, problem=str(error)), RunDetail()
    except PermissionError as error:
        return RunLine(name=directory.name, status=UNREADABLE, problem=_reason(error)), RunDetail()
    except (OSError, JournalError) as error:
        return RunLine(name=directory.name, problem=_reason(error)), RunDetail()
    return summary_of(run, directory)


def summary_of(run: Replay, directory: Path) -> tuple[RunLine, RunDetail]:
    """Summarise a run from its replayed journal."""
    settings = settings_of(run, directory)
    metrics = {joined(*name): value for name, (value, _) in run.last.items()}
    params = {name: values for name, values in run.params.items() if name != SETTINGS}
    line = RunLine(
        name=_text(_table(settings, "run").get("name")) or run.header.run,
        status=run.status or (RUNNING if run.is_going else None),
        error=run.error,
        created=run.header.time,
        ended=run.ended,
        seconds=run.seconds,
        step=run.step,
        model=_text(_table(settings, "model").get("path")),
        method=_text(_table(settings, "run").get("method")),
        data=_sources(_table(settings, "data").get("train")),
        loss=metrics.get("train/loss"),
        eval=metrics.get("eval/loss"),
        params=" ".join(f"{key}={value}" for key, value in flat(params.get("params", {})).items()),
    )
    detail = RunDetail(
        id=run.header.id,
        settings=settings,
        params=params,
        metrics=metrics,
        sessions=len(run.sessions),
        events=run.events,
        damaged=run.damaged,
        repeated=run.repeated,
        missing=run.missing,
        later=run.later,
    )
    return line, detail


def settings_of(run: Replay, directory: Path) -> Mapping[str, Any]:
    """The settings of a run: those that it recorded, or else those in its `config.toml`, which the user may
    have edited."""
    if SETTINGS in run.params:
        return run.params[SETTINGS]
    try:
        tables = read_tables(directory, CONFIG_NAME)
    except ConfigError:  # a run may consist of only a journal
        return {}
    found: dict[str, Any] = plain({name: values for name, values in tables.items() if name != "params"})
    return found


def current_status(directory: Path, line: RunLine) -> str:
    """How a run ended, or whether it is running: a killed process leaves no status, and its lock is
    released. One that was running when it was read may have ended since, in whatever way."""
    if line.status is not None:
        return line.status
    try:
        if is_being_written(journal_of(directory)):  # whose writer repairs a damaged journal
            return RUNNING
        return DAMAGED if line.problem else KILLED
    except PermissionError:  # of its lock
        return UNREADABLE


def _reason(error: OSError | JournalError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = settings.get(name)
    return table if isinstance(table, Mapping) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _sources(train: Any) -> str | None:
    given = train if isinstance(train, (list, tuple)) else [] if train is None else [train]
    named = [str(each.get("path")) if isinstance(each, Mapping) else str(each) for each in given]
    return ", ".join(named) or None
