"""The cost of one log event in the training thread: `python -m tests.benchmarks.event_cost`.

A run with five trackers attached (Aim, W&B offline, MLflow, TensorBoard and trackio, all local) is compared
with writing the bare JSON line to a file, interleaved in one process, each first equally often. There are
pauses between events, as in a training, during which the shippers work.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.registry import reference
from tests.benchmarks.results import multiple, record

EVENTS = 3000
PAUSE = 0.002


def five_trackers(folder: str) -> dict[str, dict[str, str]]:
    """Five trackers that store events below a folder, with their options."""
    os.environ["TRACKIO_DIR"] = f"{folder}/trackio"
    return {
        "aim": {"repo": folder},
        "wandb": {"mode": "offline", "dir": folder},
        "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
        "tensorboard": {"dir": f"{folder}/tensorboard"},
        "trackio": {"project": "benchmark"},
    }


def write_line(file: IO[str], line: Mapping[str, Any]) -> None:
    """What a training without a tracker would do."""
    file.write(json.dumps(line) + "\n")


def microseconds(call: Callable[[], object]) -> float:
    """The time of one call."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        directory = Path(name) / "run"
        (directory / TRACKING_DIR).mkdir(parents=True)
        jobs = [Job(tracker, reference(tracker), options) for tracker, options in five_trackers(name).items()]
        fleet = Fleet(jobs, check_within=30, close_timeout=120)
        print({tracker: check.state for tracker, check in fleet.check().items()})
        journal = JournalWriter(
            directory / TRACKING_DIR / JOURNAL_NAME, Header("benchmark", "benchmark", time.time(), name)
        )
        recorder = Recorder(journal, Redactor())
        fleet.start_delivery(directory)
        bare = (Path(name) / "bare.jsonl").open("w", buffering=1)
        ours, plain = list[float](), list[float]()
        for step in range(1, EVENTS + 1):
            values = {"loss": 1 / step, "learning_rate": 1e-4, "grad_norm": 1.5, "mean_token_accuracy": 0.5}
            point = MetricPoint(values, "train", step, step / 100)
            line = {"seq": step, "time": time.time(), "kind": "metrics", "stage": "train", "step": step}
            line |= {"epoch": step / 100, "values": values}
            turns: list[tuple[list[float], Callable[[], object]]] = [
                (ours, partial(recorder.track_point, point)),
                (plain, partial(write_line, bare, line)),
            ]
            for times, call in turns[:: 1 if step % 2 else -1]:
                times.append(microseconds(call))
            time.sleep(PAUSE)
        recorder.close("finished")
        fleet.finish()
        mine, base = statistics.median(ours), statistics.median(plain)
        print(f"bare JSON line      {base:7.1f} us")
        print(f"recorded, tracked   {mine:7.1f} us   {mine / base:5.2f} x")
        record(
            "a log event, with Aim, W&B, MLflow, TensorBoard and trackio attached",
            "writing the bare JSON line",
            f"{multiple(mine / base)} its time ({mine:.0f} µs)",
        )


if __name__ == "__main__":
    main()
