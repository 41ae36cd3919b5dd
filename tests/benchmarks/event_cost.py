"""What one log event costs the training thread: `python tests/benchmarks/event_cost.py`.

A run with Aim and W&B (offline) attached is compared with writing the bare JSON line to a file, in turns in
one process. The events come with pauses, as a training's do, so that the shippers work meanwhile.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.registry import reference

EVENTS = 3000
PAUSE = 0.002


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
        jobs = [
            Job("aim", reference("aim"), {"repo": name}),
            Job("wandb", reference("wandb"), {"mode": "offline", "dir": name}),
        ]
        fleet = Fleet(jobs, check_within=30, close_timeout=120)
        print({tracker: check.state for tracker, check in fleet.check().items()})
        journal = JournalWriter(
            directory / TRACKING_DIR / JOURNAL_NAME, Header("benchmark", "benchmark", time.time(), name)
        )
        recorder = Recorder(journal, Redactor())
        fleet.sail(directory)
        bare = (Path(name) / "bare.jsonl").open("w", buffering=1)
        ours, plain = [], []
        for step in range(1, EVENTS + 1):
            values = {"loss": 1 / step, "learning_rate": 1e-4, "grad_norm": 1.5, "mean_token_accuracy": 0.5}
            point = MetricPoint(values, "train", step, step / 100)
            ours.append(microseconds(lambda point=point: recorder.track_point(point)))
            line = {"seq": step, "time": time.time(), "kind": "metrics", "stage": "train", "step": step}
            line |= {"epoch": step / 100, "values": values}
            plain.append(microseconds(lambda line=line: bare.write(json.dumps(line) + "\n")))
            time.sleep(PAUSE)
        recorder.close("finished")
        fleet.finish()
        mine, base = statistics.median(ours), statistics.median(plain)
        print(f"bare JSON line      {base:7.1f} us")
        print(f"recorded, tracked   {mine:7.1f} us   {mine / base:5.2f} x")


if __name__ == "__main__":
    main()
