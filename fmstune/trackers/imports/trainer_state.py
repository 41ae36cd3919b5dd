"""The `trainer_state.json` that every transformers Trainer writes to its checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmstune.trackers.imports.past import NotASource, PastRun, file_below
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.values.stages import split_stages

NAME = "trainer_state.json"


def find(source: Path) -> Path | None:
    """The newest state at a path: the file, that of a checkpoint, or that of an output directory."""
    if (there := file_below(source, NAME)) is not None:
        return there
    states = [each for each in source.glob(f"checkpoint-*/{NAME}") if _step(each) >= 0]
    return max(states, key=_step, default=None)


def read(path: Path) -> Iterator[PastRun]:
    """Yield the single run of a state. Raises `NotASource`."""
    try:
        state: Any = json.loads(path.read_text("utf-8"))
        history = state["log_history"]
        assert isinstance(history, list)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise NotASource(f"{path} is not a Trainer state: {type(error).__name__}: {error}") from error
    # The file contains no times: its modification time is the end, and earlier steps take no time.
    moment = path.stat().st_mtime
    points, lost = [], 0
    for logs in history:
        if not isinstance(logs, dict) or not isinstance(logs.get("step"), int):
            lost += 1
            continue
        epoch = logs.get("epoch")
        values = {key: value for key, value in logs.items() if key not in ("step", "epoch")}
        for stage, found in split_stages(values).items():
            points.append(MetricPoint(found, stage, logs["step"], epoch, moment))
    kept = {name: state[name] for name in _KEPT if state.get(name) not in (None, "")}
    last = state.get("max_steps")
    done = isinstance(last, int) and state.get("global_step") == last
    folder = path.resolve().parent
    whole = folder.parent if folder.name.startswith("checkpoint-") else folder
    yield PastRun(
        "trainer_state",
        str(whole),
        whole.name,
        moment,
        "finished" if done else "interrupted",
        tuple(points),
        {"trainer_state": kept} if kept else {},
        lost=(f"{lost} entries of its history have no step",) if lost else (),
    )


_KEPT = ("max_steps", "num_train_epochs", "train_batch_size", "total_flos", "best_metric", "best_global_step")


def _step(path: Path) -> float:
    number = path.parent.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -math.inf
