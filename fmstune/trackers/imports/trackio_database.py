"""Runs of trackio's databases, one for each project, read without its SDK. The format was observed with
trackio 0.43."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from fmstune.text import counted
from fmstune.trackers.continued import MARK
from fmstune.trackers.imports.past import PastRun, PastText, epoch_of, namespaces, step_of
from fmstune.trackers.records import MetricPoint, Status
from fmstune.trackers.trackio_tracker import AXES, OWN

_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""How trackio writes numbers that JSON does not have."""
_STATUSES: dict[str, Status] = {"finished": "finished", "failed": "failed", "interrupted": "interrupted"}
_OF_RUNS = ("metrics", "configs", "system_metrics", "alerts", "traces", "run_artifact_links")
"""The tables that mention runs; older databases lack some."""
_SYSTEM = "system"


def find(source: Path) -> list[Path]:
    """The databases at a path: one, or those in a folder (TRACKIO_DIR), or in its folder `trackio`."""
    if source.is_file():
        return [source] if _is_one(source) else []
    folders = (source, source / "trackio")
    return next((found for each in folders if (found := sorted(filter(_is_one, each.glob("*.db"))))), [])


def read(files: list[Path]) -> Iterator[PastRun]:
    """Yield all runs of these databases."""
    for path in files:
        with closing(_opened(path)) as database:
            for run_id, name in _runs(database):
                yield _past(database, run_id, name)


def _runs(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """The runs that any table mentions, in the order in which they started."""
    found: dict[str, tuple[str, str]] = {}
    for table in _OF_RUNS:
        moment = {"configs": "created_at", "run_artifact_links": "created_at"}.get(table, "timestamp")
        asked = f"SELECT run_id, MAX(run_name), MIN({moment}) FROM {table} GROUP BY run_id"
        for run_id, name, began in _rows(database, asked):
            if run_id is not None:
                named, first = found.get(run_id, ("", "~"))
                found[run_id] = (named or str(name or run_id), min(first, str(began or "~")))
    return [(each, found[each][0]) for each in sorted(found, key=lambda run: (found[run][1], run))]


def _rows(database: sqlite3.Connection, asked: str, *given: Any) -> list[Any]:
    """The rows of a table; none if the table or its columns do not exist."""
    try:
        return database.execute(asked, given).fetchall()
    except sqlite3.OperationalError as error:
        if str(error).startswith(("no such table", "no such column")):
            return []
        raise


def _opened(path: Path) -> sqlite3.Connection:
    """The database, read-only. Creates no files next to it, unlike opening it with its write-ahead log."""
    live = path.with_name(f"{path.name}-wal").exists()
    how = "mode=ro" if live else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True)


def _is_one(path: Path) -> bool:
    try:
        with closing(_opened(path)) as database:
            database.execute("SELECT run_id, run_name, step, timestamp, metrics FROM metrics LIMIT 0")
            database.execute("SELECT run_id, config FROM configs LIMIT 0")
    except sqlite3.Error:  # of another tool, or not a database
        return False
    return True


def _past(database: sqlite3.Connection, run_id: str, name: str) -> PastRun:
    points: list[MetricPoint] = []
    texts: list[PastText] = []
    lost: dict[str, None] = {}
    config: dict[str, Any] = {}
    try:
        for (held,) in database.execute("SELECT config FROM configs WHERE run_id = ?", [run_id]):
            config = _object(held, "its config", lost)
        asked = "SELECT timestamp, step, metrics FROM metrics WHERE run_id = ? ORDER BY timestamp, id"
        for stamp, step, held in database.execute(asked, [run_id]):
            _row(_object(held, "a row of metrics", lost), step, _moment(stamp), points, texts, lost)
        _others(database, run_id, points, texts, lost)
    except (sqlite3.Error, ValueError) as error:
        lost[f"the database is damaged ({error}); what was read before that is kept"] = None
    ours = MARK in config
    own = OWN if ours else {key for key in OWN if key.startswith("_")}
    params = {key: value for key, value in config.items() if key not in own}
    group, tags = config.get("_Group"), config.get("tags")
    began = min((point.time for point in points if point.time is not None), default=0.0)
    return PastRun(
        "trackio", run_id, name, _moment(config.get("_Created")) or began,
        _status(config.get("status") if ours else None, ours, lost),
        tuple(points), namespaces(params), _text(config, "error") if ours else None,
        group=str(group) if group else None,
        tags=tuple(map(str, tags)) if ours and isinstance(tags, list) else (),
        notes=_text(config, "notes") if ours else None, texts=tuple(texts), lost=tuple(lost),
    )  # fmt: skip


def _text(config: Mapping[str, Any], key: str) -> str | None:
    return None if config.get(key) is None else str(config[key])


def _status(said: Any, ours: bool, lost: dict[str, None]) -> Status:
    if isinstance(said, str) and said in _STATUSES:
        return _STATUSES[said]
    if not ours:
        lost["trackio does not record how it ended: it is assumed finished"] = None
        return "finished"
    how = "it has no end" if said is None else f"its status {said!r} is unknown"
    lost[f"{how}: it is assumed interrupted"] = None
    return "interrupted"


def _object(held: Any, what: str, lost: dict[str, None]) -> dict[str, Any]:
    found = json.loads(held)
    if isinstance(found, dict):
        return found
    lost[f"{what} is not a JSON object, and is not read"] = None
    return {}


def _others(
    database: sqlite3.Connection,
    run_id: str,
    points: list[MetricPoint],
    texts: list[PastText],
    lost: dict[str, None],
) -> None:
    """Read other tables: machine samples, which have no step, and alerts, as texts."""
    before = len(points)
    asked = "SELECT timestamp, metrics FROM system_metrics WHERE run_id = ? ORDER BY timestamp, id"
    for stamp, held in _rows(database, asked, run_id):
        values: dict[str, Any] = {}
        for key, value in _object(held, "a row of system metrics", lost).items():
            number = _NUMBERS.get(value, value) if isinstance(value, str) else value
            if isinstance(number, (int, float)):
                values[key.removeprefix(f"{_SYSTEM}/")] = number
            else:
                lost[f"{key} of the system metrics is not read: not a number"] = None
        points.append(MetricPoint(values, _SYSTEM, None, None, _moment(stamp)))
    if len(points) > before:
        points.sort(key=lambda point: point.time or 0.0)  # stable: keeps the order of equal times
    asked = "SELECT timestamp, level, title, text, step FROM alerts WHERE run_id = ? ORDER BY timestamp, id"
    for stamp, level, title, text, step in _rows(database, asked, run_id):
        said = f"{level}: {title}" + (f"\n{text}" if text else "")
        texts.append(PastText(said, "alert", None, step_of(step), _moment(stamp) or 0.0))
    for table, what in (("traces", "trace"), ("run_artifact_links", "artifact")):
        for (count,) in _rows(database, f"SELECT COUNT(*) FROM {table} WHERE run_id = ?", run_id):
            if count:
                lost[f"{counted(count, what)} not read"] = None


def _row(
    row: Mapping[str, Any],
    given: Any,
    moment: float | None,
    points: list[MetricPoint],
    texts: list[PastText],
    lost: dict[str, None],
) -> None:
    """Read what was logged together. transformers logs the optimizer step as a separate metric."""
    stages: dict[str | None, dict[str, Any]] = {}
    said, step, epoch = row.get(AXES[0]), step_of(row.get(AXES[0]), given), epoch_of(row.get(AXES[1]))
    if said is not None and step_of(said) is None:
        lost[f"{AXES[0]} {said!r} is not a step: trackio's own ({given!r}) is used"] = None
    if step is None:
        lost[f"the step {given!r} is not a step, and is left out"] = None
    if epoch is None and row.get(AXES[1]) is not None:
        lost[f"{AXES[1]} {row[AXES[1]]!r} is not an epoch, and is left out"] = None
    for key, value in row.items():
        stage, slash, name = key.partition("/")
        where, called = (stage, name) if slash and stage and name else (None, key)
        if isinstance(value, str):
            value = _NUMBERS.get(value, value)
        if key in AXES:
            continue
        if isinstance(value, (int, float)):
            stages.setdefault(where, {})[called] = value
        elif isinstance(value, dict) and value.get("_type") == "trackio.markdown":
            texts.append(PastText(str(value.get("_value")), called, where, step, moment or 0.0))
        else:
            kind = value.get("_type") if isinstance(value, dict) else "not a number"
            lost[f"{key} is not read: {kind}"] = None
    for where, values in stages.items():
        points.append(MetricPoint(values, where, step, epoch, moment))


def _moment(stamp: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
