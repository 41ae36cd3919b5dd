"""W&B's offline runs: the `.wandb` files that its SDK writes, in the format of wandb 0.31.

W&B's own reader fails at the first truncated record; this one returns the complete ones before it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmstune.trackers.continued import MARK
from fmstune.trackers.imports.past import NotASource, PastRun, epoch_of, namespaces, step_of
from fmstune.trackers.records import MetricPoint, Status
from fmstune.trackers.wandb.log_file import records

_STEP, _EPOCH = "train/global_step", "train/epoch"
_MOST_NAMED = 8
_STATUSES: dict[int, Status] = {0: "finished", 255: "interrupted"}


def find(source: Path) -> list[Path]:
    """The files at a path: one, that of a run's folder, or those of a folder `wandb`."""
    if source.suffix == ".wandb" and source.is_file():
        return [source]
    for pattern in ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb"):
        if files := sorted(source.glob(pattern)):
            return files
    return []


def read(paths: list[Path]) -> Iterator[PastRun]:
    """Yield the runs in these files; a resumed run has several. Raises `NotASource` without W&B's SDK."""
    try:
        proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    except ImportError:
        raise NotASource("W&B's files need its SDK: pip install wandb.") from None
    runs: dict[str, dict[str, Any]] = {}
    for path in paths:
        found = _read_file(path, proto)
        run = runs.setdefault(found["id"], found)
        if run is not found:
            run["points"] += found["points"]
            run["config"] |= found["config"]
            run |= {key: found[key] for key in ("status", "tags", "notes", "group", "name")}
            run["lost"] += found["lost"]
    for run in runs.values():
        yield PastRun(
            "wandb",
            run["id"],
            run["name"] or run["id"],
            run["created"],
            run["status"],
            tuple(run["points"]),
            namespaces(run["config"]),
            group=run["group"] or None,
            tags=run["tags"],
            notes=run["notes"] or None,
            lost=tuple(run["lost"]),
        )


def _read_file(path: Path, proto: Any) -> dict[str, Any]:
    run: dict[str, Any] = {
        "id": path.stem.removeprefix("run-"), "name": "", "group": "", "notes": "", "tags": (), "config": {},
        "created": path.stat().st_mtime, "status": "interrupted", "points": [], "lost": [],
    }  # fmt: skip
    others: set[str] = set()
    summary: dict[str, Any] = {}
    logged: set[str] = set()
    ended = False
    for data in records(path.read_bytes(), path, run["lost"]):
        record = proto.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            said = record.run
            run |= {"id": said.run_id, "name": said.display_name, "group": said.run_group}
            run |= {"notes": said.notes, "tags": tuple(said.tags), "created": said.start_time.ToSeconds()}
            run["config"] |= _items(said.config.update)
        elif kind == "config":
            run["config"] |= _items(record.config.update)
        elif kind == "history":
            row = _items(record.history.item)
            logged |= row.keys()
            run["points"] += _points(row, others)
        elif kind == "stats":
            run["points"].append(_sample(record.stats))
        elif kind == "summary":
            summary |= _items(record.summary.update)
            for removed in record.summary.remove:
                summary.pop(removed.key or ".".join(removed.nested_key), None)
        elif kind == "exit":
            ended = True
            run["status"] = _STATUSES.get(record.exit.exit_code, "failed")
    # What the user has set in the summary; the last of what was logged is there, too.
    run["points"] += _points({key: summary[key] for key in summary if key not in logged}, others)
    if not ended:
        run["lost"].append(f"{path} has no end: the run was killed, or its file is cut off")
    for own in ("_wandb", MARK):
        run["config"].pop(own, None)
    if others:
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        named = ", ".join(sorted(others)[:_MOST_NAMED])
        run["lost"].append(f"not numbers, and left out: {named}{more}")
    return run


def _points(row: dict[str, Any], others: set[str]) -> list[MetricPoint]:
    """A row as one point per stage, the part of a name before the first slash."""
    said, epoch, moment = row.pop(_STEP, None), row.pop(_EPOCH, None), row.get("_timestamp")
    step = step_of(said, row.get("_step"))
    if said is not None and step_of(said) is None:
        others.add(f"{_STEP} {said!r}, which is not a step: W&B's own step is used")
    stages: dict[str | None, dict[str, Any]] = {}
    # An image or a table has many keys, some of them numbers: `eval/picture._type`, `eval/picture.width`.
    objects = tuple(f"{key.removesuffix('._type')}." for key in row if key.endswith("._type"))
    others |= {each[:-1] for each in objects}
    for key, value in row.items():
        if key.startswith(("_", *objects)):
            continue
        if not isinstance(value, (int, float)):
            others.add(key)
            continue
        stage, _, name = key.rpartition("/") if key.count("/") == 1 else ("", "", key)
        stages.setdefault(stage or None, {})[name] = value
    return [MetricPoint(values, stage, step, epoch_of(epoch), moment) for stage, values in stages.items()]


def _sample(stats: Any) -> MetricPoint:
    """A sample of the machine, which has no step."""
    values = {name: value for name, value in _items(stats.item).items() if isinstance(value, (int, float))}
    return MetricPoint(values, "system", None, None, stats.timestamp.ToNanoseconds() / 1e9)


def _items(items: Any) -> dict[str, Any]:
    # History rows have their keys in `nested_key`, most others in `key`.
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
