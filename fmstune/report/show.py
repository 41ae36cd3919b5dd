"""A complete view of one run: its configuration, its status, its results, and its deliveries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.config.inspect.compare import flat
from fmstune.delivery.journal.reader import JournalError
from fmstune.delivery.ledger import load_ledgers
from fmstune.delivery.report import DeliveryReport, report
from fmstune.layout import FILES_DIR, TRACKING_DIR
from fmstune.report.curves import Curve, Figures, TrackedRun, read_run
from fmstune.report.replay import SETTINGS, Session
from fmstune.report.summary import RunDetail, RunLine, current_status, summary_of

_OWN_PARAMS = (SETTINGS, "params", "model", "data", "padding", "decided", "packages", "git")
"""The namespaces of params that each run has."""
RESOURCES = "system"
"""The stage of the metrics about the machine."""


@dataclass(frozen=True, slots=True)
class RunView:
    """All information about a run."""

    directory: Path
    status: str
    line: RunLine
    detail: RunDetail
    sessions: Sequence[Session]
    figures: Sequence[Figures]
    tables: Sequence[Mapping[str, Any]]
    media: Sequence[Mapping[str, Any]]
    delivery: Sequence[DeliveryReport]

    def to_json(self) -> dict[str, Any]:
        """The view as JSON-compatible values; metrics have summary figures, and their points are exported
        separately."""
        line = {name: value for name, value in dataclasses.asdict(self.line).items() if name != "params"}
        detail = dataclasses.asdict(self.detail)
        return {
            "run": str(self.directory),
            **line,
            "status": self.status,
            **detail,
            "sessions": [dataclasses.asdict(each) for each in self.sessions],
            "metrics": [dataclasses.asdict(each) for each in self.figures],
            "tables": list(self.tables),
            "media": list(self.media),
            "delivery": [dataclasses.asdict(each) for each in self.delivery],
        }


def view(directory: Path) -> RunView:
    """All information about the run in a directory. Raises `ConfigError` if there is none, `JournalError` and
    `OSError` if its journal cannot be read."""
    return view_of(read_run(directory))


def view_of(run: TrackedRun) -> RunView:
    """All information about a run whose journal has been read."""
    directory = run.directory
    line, detail = summary_of(run.replay, directory)
    return RunView(
        directory=directory,
        status=current_status(directory, line),
        line=line,
        detail=detail,
        sessions=tuple(run.replay.sessions),
        figures=tuple(curve.figures() for curve in ordered(run.curves)),
        tables=tuple(tables_of(run)),
        media=tuple(media_of(run)),
        delivery=tuple(_delivery(directory)),
    )


def ordered(curves: Sequence[Curve]) -> list[Curve]:
    """The curves in the order of their first values, with those about the machine last."""
    return sorted(curves, key=lambda curve: curve.stage == RESOURCES)


def tables_of(run: TrackedRun) -> list[dict[str, Any]]:
    """The tables of a run, as JSON-compatible values."""
    return [
        {
            "stage": event.stage,
            "name": event.name,
            "step": event.step,
            "epoch": event.epoch,
            "time": event.time,
            "rows": [dict(row) for row in event.rows],
        }
        for event in run.tables
    ]


def media_of(run: TrackedRun) -> list[dict[str, Any]]:
    """The texts, images, histograms and artifacts of a run, as JSON-compatible values; `path` is that of a
    file."""
    found = []
    for event in run.media:
        said = {"kind": event.kind, "stage": event.stage, "name": event.name, "step": event.step}
        file = event.item.get("file") or event.item.get("folder")
        where = run.directory / TRACKING_DIR / FILES_DIR / str(file)
        if "from" in event.item and not where.exists():  # released links
            where = run.directory / str(event.item["from"])
        path = {"path": str(where)} if file else {}
        found.append(said | {"time": event.time} | dict(event.item) | path)
    return found


def further_params(detail: RunDetail) -> dict[str, Any]:
    """The user's params in namespaces of their own, and those of an imported run, by dotted key."""
    return flat({name: values for name, values in detail.params.items() if name not in _OWN_PARAMS})


def changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that differ from the defaults, by dotted key."""
    from fmstune.config.inspect.dump import option_table
    from fmstune.config.methods.known import DEFAULT, METHODS

    method = flat(settings).get("run.method", DEFAULT)
    known = option_table(method if method in METHODS else DEFAULT)
    defaults = {each.key: each.default for each in known}
    nothing: tuple[Any, ...] = (None, [], (), {})
    return {
        key: value
        for key, value in flat(settings).items()
        if value not in nothing and not (key in defaults and _same(value, defaults[key]))
    }


def _same(value: Any, default: Any) -> bool:
    return bool(value == default or str(value) == str(default))


def _delivery(directory: Path) -> list[DeliveryReport]:
    """The state of each delivery, read without changing anything: a damaged ledger, which a delivery would
    set aside, stays in place, and the other ledgers are used unchecked."""
    ledgers = load_ledgers(directory)
    names = [each.tracker for each in ledgers]
    whole = len(ledgers) == len(list(directory.glob(f"{TRACKING_DIR}/*.json")))
    try:
        if whole:
            return report(directory, names)
    except (OSError, JournalError):  # removed meanwhile
        pass
    return [
        DeliveryReport(
            each.tracker,
            each.delivered,
            each.total,
            each.state,
            each.run_id,
            each.url,
            each.error,
            changes=each.changes,
        )
        for each in ledgers
    ]
