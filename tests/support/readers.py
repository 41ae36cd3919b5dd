"""Readers that return what is really in a service's own storage."""

from __future__ import annotations

import importlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.commands import fmstune


@dataclass
class WandbRun:
    """The content of one offline W&B run; `exit_code` is `None` if it was not finished."""

    id: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """project, entity, display_name, run_group, notes and tags in the run's record."""
    stats: int = 0
    """The number of samples of system metrics."""
    kinds: set[str] = field(default_factory=set)
    """The types of all records."""


def wandb_offline_dirs(folder: Path) -> list[Path]:
    """The folders of the offline runs under `folder`/wandb, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*"))


def read_wandb_offline(path: Path) -> WandbRun:
    """Read a `.wandb` file, or the one in an offline run's folder. A truncated end is tolerated."""
    # Protobuf creates its classes at run time, so that a type checker does not see them.
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    if path.is_dir():
        (path,) = path.glob("*.wandb")
    run = WandbRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        run.kinds.add(kind)
        if kind == "run":
            run.id = record.run.run_id
            for name in ("project", "entity", "display_name", "run_group", "notes"):
                run.fields[name] = getattr(record.run, name)
            run.fields["tags"] = tuple(record.run.tags)
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "stats":
            run.stats += 1
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    for not_a_param in ("_wandb", "fmstune"):
        run.config.pop(not_a_param, None)
    return run


def wandb_artifacts(path: Path) -> list[Any]:
    """The artifact records in an offline run's folder."""
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = path.glob("*.wandb")
    found = []
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "artifact":
            found.append(record.artifact)
        elif record.WhichOneof("record_type") == "request" and record.request.HasField("log_artifact"):
            found.append(record.request.log_artifact.artifact)
    return found


def _items(items: Any) -> dict[str, Any]:
    """History rows and automatic summaries name their keys with `nested_key`, all others with `key`."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, as W&B writes it: a header of seven bytes, then blocks of 32 KiB in which
    a record is whole (1) or in parts (2 first, 3 middle, 4 last)."""
    block = 32 * 1024
    assert log[:4] == b":W&B", "not a .wandb file"
    at, parts = 7, b""
    while at + 7 <= len(log):
        if block - at % block < 7:  # no room for a header: zero padding up to the next block
            at += block - at % block
            continue
        checksum, size, part = struct.unpack_from("<IHB", log, at)
        body = log[at + 7 : at + 7 + size]
        if part == 0 or len(body) < size:
            return
        assert checksum == zlib.crc32(bytes([part]) + body), f"broken record at byte {at}"
        at += 7 + size
        parts = body if part in (1, 2) else parts + body
        if part in (1, 4):
            yield parts


@dataclass(frozen=True)
class AimRun:
    """A run of an Aim repository; `points` maps (metric, subset) to its (step, value) pairs, by step."""

    hash: str
    name: str
    experiment: str
    tags: list[str]
    params: dict[str, Any]
    points: dict[tuple[str, str | None], list[tuple[int, float]]]


def read_aim(repository: Path, *, reindex: bool = False) -> list[AimRun]:
    """The runs of an Aim repository, read with Aim's own SDK in a subprocess (in this process, its caches
    would return stale content). With `reindex`, as after `aim storage reindex`: what `aim server` writes is
    not in the index."""
    how = ["reindex"] * reindex
    done = fmstune(
        str(repository.absolute()), *how, cwd=Path.cwd(), module="tests.support.aim_reader", sdks=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        AimRun(**{**run, "points": {(name, subset): points for name, subset, points in run["points"]}})
        for run in found
    ]


def event_accumulator(folder: Path) -> EventAccumulator:
    """Everything that TensorBoard's own reader finds in the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()
