"""What a list needs to know of a run: a line of the table, and what it may be filtered and sorted by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.config.inspect.compare import flat, read_tables
from fmstune.delivery.journal.reader import JournalError, is_being_written
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR
from fmstune.report.replay import SETTINGS, Replay, replay
from fmstune.trackers.values.plain import plain

RUNNING, KILLED, DAMAGED = "running", "killed", "damaged"
"""States of a run that its journal has no word for."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """What the table shows of a run. `status` is the one that it ended with, `None` when it has not; times
    are Unix seconds, `seconds` those that its processes were at it. `problem` says why its journal cannot be
    read, of which nothing else is known then."""

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
    """All else that a run may be chosen by: its id, the tables of its settings, its params by namespace, the
    last value of each metric by `stage/name`; and how much of its journal there is."""

    id: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    sessions: int = 0
    events: int = 0
    damaged: int = 0
    missing: int = 0


def journal_of(directory: Path) -> Path:
    """Where the journal of the run in a directory is."""
    return directory / TRACKING_DIR / JOURNAL_NAME


def joined(stage: str | None, name: str) -> str:
    """The name of a metric as people write it."""
    return name if stage is None else f"{stage}/{name}"


def read_summary(directory: Path) -> tuple[RunLine, RunDetail]:
    """What the files of a run say. One that cannot be read is a line with its problem."""
    try:
        run = replay(journal_of(directory))
    except (OSError, JournalError) as error:
        return RunLine(name=directory.name, problem=_reason(error)), RunDetail()
    return summary_of(run, directory)


def summary_of(run: Replay, directory: Path) -> tuple[RunLine, RunDetail]:
    """What the journal of the run in a directory has said."""
    settings = settings_of(run, directory)
    metrics = {joined(*name): value for name, (value, _) in run.last.items()}
    params = {name: values for name, values in run.params.items() if name != SETTINGS}
    line = RunLine(
        name=_text(_table(settings, "run").get("name")) or run.header.run,
        status=run.status,
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
        missing=run.missing,
    )
    return line, detail


def settings_of(run: Replay, directory: Path) -> Mapping[str, Any]:
    """The settings of a run: those that it recorded, else those of its `config.toml`, which somebody may
    have edited since."""
    if SETTINGS in run.params:
        return run.params[SETTINGS]
    try:
        tables = read_tables(directory, CONFIG_NAME)
    except ConfigError:  # a journal alone is a run too, of which these are not known
        return {}
    found: dict[str, Any] = plain({name: values for name, values in tables.items() if name != "params"})
    return found


def current_status(directory: Path, line: RunLine) -> str:
    """How a run ended, or whether it is going on right now: a process that is killed leaves no status, and
    its lock ends with it."""
    if line.problem:
        return DAMAGED
    if line.status is not None:
        return line.status
    return RUNNING if is_being_written(journal_of(directory)) else KILLED


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
