"""Runs of trackio's databases, one for each project, read without its SDK: what is said of them was seen with
trackio 0.43."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from fmstune.trackers.continued import MARK
from fmstune.trackers.imports.past import PastRun, PastText, namespaces
from fmstune.trackers.records import MetricPoint, Status
from fmstune.trackers.trackio_tracker import AXES, OWN

_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""How trackio writes what JSON has no numbers for."""
_STATUSES: dict[Any, Status] = {"failed": "failed", "interrupted": "interrupted"}


def find(source: Path) -> list[Path]:
    """The databases at a path: one, or those in a folder (TRACKIO_DIR), or in its folder `trackio`."""
    if source.is_file():
        return [source] if _is_one(source) else []
    folders = (source, source / "trackio")
    return next((found for each in folders if (found := sorted(filter(_is_one, each.glob("*.db"))))), [])


def read(files: list[Path]) -> Iterator[PastRun]:
    """All runs of these databases."""
    for path in files:
        with closing(_opened(path)) as database:
            asked = (
                "SELECT run_id, MAX(run_name) FROM metrics GROUP BY run_id ORDER BY MIN(timestamp), run_id"
            )
            for run_id, name in database.execute(asked).fetchall():
                yield _past(database, run_id, name)


def _opened(path: Path) -> sqlite3.Connection:
    """The database, to be read: nothing is made beside it, as opening its log would where there is none."""
    live = path.with_name(f"{path.name}-wal").exists()
    how = "mode=ro" if live else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True)


def _is_one(path: Path) -> bool:
    try:
        with closing(_opened(path)) as database:
            database.execute("SELECT run_id, run_name, step, timestamp, metrics FROM metrics LIMIT 0")
            database.execute("SELECT run_id, config FROM configs LIMIT 0")
    except sqlite3.Error:  # another's, or no database at all
        return False
    return True


def _past(database: sqlite3.Connection, run_id: str, name: str) -> PastRun:
    points: list[MetricPoint] = []
    texts: list[PastText] = []
    lost: dict[str, None] = {}
    config: dict[str, Any] = {}
    try:
        for (held,) in database.execute("SELECT config FROM configs WHERE run_id = ?", [run_id]):
            config = json.loads(held)
        asked = "SELECT timestamp, step, metrics FROM metrics WHERE run_id = ? ORDER BY timestamp, id"
        for stamp, step, held in database.execute(asked, [run_id]):
            _row(json.loads(held), step, _moment(stamp), points, texts, lost)
    except (sqlite3.Error, ValueError) as error:
        lost[f"the database is damaged ({error}); what was read before that is kept"] = None
    ours = MARK in config
    status = config.get("status") if ours else None
    if status is None:
        lost["trackio does not say how it ended, which is taken for finished"] = None
    own = OWN if ours else {key for key in OWN if key.startswith("_")}
    params = {key: value for key, value in config.items() if key not in own}
    group, notes = config.get("_Group"), config.get("notes") if ours else None
    began = min((point.time for point in points if point.time is not None), default=0.0)
    return PastRun(
        "trackio", run_id, name, _moment(config.get("_Created")) or began, _STATUSES.get(status, "finished"),
        tuple(points), namespaces(params), config.get("error") if ours else None,
        group=str(group) if group else None, tags=tuple(config.get("tags", ())) if ours else (),
        notes=notes, texts=tuple(texts), lost=tuple(lost),
    )  # fmt: skip


def _row(
    row: Mapping[str, Any],
    step: int,
    moment: float | None,
    points: list[MetricPoint],
    texts: list[PastText],
    lost: dict[str, None],
) -> None:
    """What was logged at once. transformers has the optimizer's step as a metric of its own."""
    stages: dict[str | None, dict[str, Any]] = {}
    step, epoch = row.get(AXES[0], step), row.get(AXES[1])
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
            kind = value.get("_type") if isinstance(value, dict) else "no number"
            lost[f"{key} is not read: {kind}"] = None
    for where, values in stages.items():
        points.append(MetricPoint(values, where, step, epoch, moment))


def _moment(stamp: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
