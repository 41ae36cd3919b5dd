"""The cost of the resource scanner: `python -m tests.benchmarks.scanner_cost`.

In the training thread: a step of a Trainer that does nothing, with and without the clock of phases,
interleaved, and the record created at a log. In the scanner's own thread: a sample of the machine, taken
every ten seconds. All are CPU times of the thread, which other programs on the machine hardly affect.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.recorder import Recorder
from fmstune.resources.machine import Machine
from fmstune.resources.phases import PhaseClock
from fmstune.resources.source import SYSTEM, Sources
from fmstune.secrets.redaction import Redactor
from fmstune.training.trainers.timed import TimedTraining
from tests.benchmarks.results import record

ROUNDS, STEPS, SAMPLES = 20, 500, 100


class Bare:
    """The calls of a Trainer in a step with one batch, without any work."""

    args = SimpleNamespace(device=torch.device("cpu"), per_device_train_batch_size=8, world_size=1)
    accelerator = SimpleNamespace(gradient_state=SimpleNamespace(sync_gradients=True))
    # Like a padding-free batch, in which rows are counted by their positions.
    batch: ClassVar[dict[str, torch.Tensor]] = {
        "input_ids": torch.zeros(1, 240, dtype=torch.int64),
        "position_ids": torch.arange(240)[None] % 30,
    }

    def get_batch_samples(self, iterator: Any, count: int, device: Any) -> Any:
        return [self.batch], torch.tensor(70)

    def training_step(self) -> Any:
        return self.compute_loss(None, self.batch)

    def compute_loss(self, model: Any, inputs: Any) -> Any:
        return None


class Timed(TimedTraining, Bare):
    """The same, timed."""


def microseconds(call: Callable[[], object], times: int) -> float:
    """The CPU time of one call in this thread."""
    began = time.thread_time_ns()
    for _ in range(times):
        call()
    return (time.thread_time_ns() - began) / 1000 / times


def step(trainer: Any) -> None:
    trainer.get_batch_samples(None, 1, None)
    trainer.training_step()
    if getattr(trainer, "clock", None) is not None:
        trainer.clock.enter("other")


def main() -> None:
    timed, bare = Timed(), Bare()
    timed.clock = PhaseClock()
    timed.clock.enter("other")
    costs = [
        microseconds(lambda: step(timed), STEPS) - microseconds(lambda: step(bare), STEPS)
        for _ in range(ROUNDS)
    ]
    print(f"the clock, a step              {statistics.median(costs):8.1f} us of the training thread")
    with tempfile.TemporaryDirectory() as name:
        header = Header("benchmark", "benchmark", time.time(), name)
        recorder = Recorder(JournalWriter(Path(name) / "journal.jsonl", header), Redactor())
        logged = [
            microseconds(lambda: recorder.track_sample(timed.clock.take(), SYSTEM, 1), 100)  # type: ignore[union-attr]
            for _ in range(ROUNDS)
        ]
        print(f"the record, a log              {statistics.median(logged):8.1f} us of the training thread")
        machine = Sources(Machine(Path(name)).sources(), print)
        machine.read()
        samples = [microseconds(machine.read, 1) for _ in range(SAMPLES)]
        recorder.close("finished")
        recorder.journal.close()
    sample = statistics.median(samples)
    both = statistics.median(costs) + statistics.median(logged)
    record(
        "the clock of phases and the record of a log; a sample of the machine",
        "a step without them",
        f"{both:.0f} µs of the training thread; {sample / 1e3:.0f} ms of another thread every ten seconds",
    )
    print(f"a sample, every ten seconds    {sample:8.1f} us of its own thread ({sample / 1e5:.4f}%)")


if __name__ == "__main__":
    main()
