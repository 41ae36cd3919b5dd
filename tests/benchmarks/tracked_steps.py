"""The cost of five trackers per training step: `python -m tests.benchmarks.tracked_steps [MODEL] [--steps N]
[--turns N]`.

The demo, or a training of MODEL, is run with five trackers (Aim, W&B offline, MLflow, TensorBoard, trackio)
and with none, interleaved, and logs at each step. Printed are the median and mean times of a step and their
ratios (the mean includes opening the trackers' runs, and any other load on the machine), the mean of the
second half, in which all of them are open, the CPU seconds of the shippers, and whether the weights are
bitwise equal.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from tests.benchmarks.event_cost import five_trackers
from tests.benchmarks.results import multiple, record
from tests.benchmarks.train_speed import named

TURNS, STEPS, STEPS_OF_MODEL = 4, 300, 12
_FIRST = 3
"""Steps that are not measured: one-time work belongs to no step."""


@dataclass(frozen=True)
class Run:
    """The times of its steps, the CPU seconds of all its processes, and a hash of its weights."""

    between: list[float]
    cpu: float
    weights: str


def trained(run: Path, model: list[str], steps: int, trackers: list[str]) -> Run:
    settings = {"training.max_steps": steps, "training.logging_steps": 1, "training.save_strategy": "no"}
    command = [sys.executable, "-m", "fmstune", "train", "--output-dir", str(run), *model, *trackers]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=run.parent)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(said.decode())
    events = JournalReader(run / TRACKING_DIR / JOURNAL_NAME)
    times = [event.time for event in events if event.stage == "train" and "loss" in event.values]
    between = [later - time for time, later in pairwise(times[_FIRST:])]
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    return Run(between, usage.ru_utime + usage.ru_stime, weights)


def second_half(times: list[float]) -> float:
    return statistics.mean(times[len(times) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--steps", type=int, help=f"{STEPS}, or {STEPS_OF_MODEL} with MODEL")
    parser.add_argument("--turns", type=int, default=TURNS)
    asked = parser.parse_args()
    model = ["--model", str(Path(asked.model).absolute()), "--data", "demo"] if asked.model else []
    steps = asked.steps or (STEPS_OF_MODEL if model else STEPS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        options = five_trackers(str(folder))
        five = [part for tracker in options for part in ("--tracker", tracker)]
        for tracker, said in options.items():
            for key, value in said.items():
                five += ["--set", f"trackers.{tracker}.{key}={value}"]
        sides = {"none": ["--tracker", "none"], "five": five}
        turns = [
            {side: trained(folder / f"{side}-{turn}", model, steps, flags) for side, flags in order}
            for turn in range(asked.turns)
            for order in [list(sides.items())[:: 1 if turn % 2 else -1]]
        ]
    beside = statistics.median(turn["five"].cpu - turn["none"].cpu for turn in turns)
    same = len({turn[side].weights for turn in turns for side in sides}) == 1
    figures = (
        ("median", statistics.median),
        ("mean", statistics.mean),
        ("mean of the second half", second_half),
    )
    ratios = []
    for what, figure in figures:
        step = {side: statistics.median(figure(turn[side].between) for turn in turns) for side in sides}
        ratio = statistics.median(
            figure(turn["five"].between) / figure(turn["none"].between) for turn in turns
        )
        ratios.append(multiple(ratio))
        print(f"a step without trackers {1000 * step['none']:8.2f} ms ({what})")
        print(f"with five of them       {1000 * step['five']:8.2f} ms   {ratio:6.4f} x")
    bits = "the same" if same else "not the same"
    median, mean, half = ratios
    record(
        f"a step of {named(asked.model)}, beside five trackers",
        "without trackers",
        f"median {median}, mean {mean}, and {half} once all their runs are open; weights {bits}",
    )
    print(f"their shippers took {beside:.1f} s of the processor; the weights are {bits}")


if __name__ == "__main__":
    main()
