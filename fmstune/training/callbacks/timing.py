"""Where the time of a run goes, recorded at each log: its start, and its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.resources.phases import STEP, PhaseClock
from fmstune.training.callbacks.collectives import Collectives
from fmstune.training.memory.parts import MemoryParts
from fmstune.training.speed.utilisation import Utilisation, utilisation
from fmstune.training.trainers.timed import TimedTraining
from fmstune.training.trl_compat.figures import tokens_seen


class TimingCallback(TrainerCallback):
    """Record the seconds of each phase since the last log, and the throughput.

    Add it as one of the first callbacks, so that other callbacks' time at the end of a step does not count
    for the optimizer. `record` receives metrics and a step; `began` is the `time.perf_counter` of the run's
    start, `imports` the seconds spent on imports.
    """

    def __init__(
        self, record: Callable[[Mapping[str, float], int], None], began: float, imports: float
    ) -> None:
        self.clock = PhaseClock()
        self._record = record
        self._began, self._start = began, {"startup_imports_seconds": imports}
        self._trainer: TimedTraining | None = None
        self._utilisation: Utilisation | None = None
        self._tokens = 0

    def attach(self, trainer: Any, model_seconds: float, data_seconds: float) -> None:
        """Time the built trainer, and record how long its model and data took."""
        self._trainer, trainer.clock = trainer, self.clock
        trainer.memory = MemoryParts(
            trainer, lambda figures: self._record(figures, int(trainer.state.global_step) + 1)
        )
        if trainer.args.world_size > 1:
            trainer.add_callback(Collectives(self._record))
        self._utilisation = utilisation(trainer)
        self._start |= {"startup_model_seconds": model_seconds, "startup_data_seconds": data_seconds}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        whole = time.perf_counter() - self._began
        rest = max(0.0, whole - sum(self._start.values()))
        start = {**self._start, "startup_trainer_seconds": rest, "startup_seconds": whole}
        self._record({name: round(seconds, 3) for name, seconds in start.items()}, state.global_step)
        if self._trainer is not None and self._trainer.memory is not None:
            self._trainer.memory.arm()
        self._tokens = tokens_seen(self._trainer)
        self.clock.enter("other")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer is not None and self._trainer.memory is not None:
            self._trainer.memory.updated()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.enter("other")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The loss has been read, so all work on the device is done: nothing needs to be waited for.
        if self.clock.phase == "logging" and "learning_rate" in (logs or {}):
            self._record_phases(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._record_phases(args, state)
        self.clock.enter(None)

    def _record_phases(self, args: TrainingArguments, state: TrainerState) -> None:
        found = self.clock.take()
        seconds = sum(found[f"{phase}_seconds"] for phase in STEP)
        if self._trainer is not None and seconds > 0:
            # Rows are counted here; tokens where they are summed over all processes.
            rows, tokens = self._trainer.rows_seen * args.world_size, float(self._trainer.tokens_trained)
            self._trainer.rows_seen, self._trainer.tokens_trained = 0, 0
            if args.world_size > 1 and not args.average_tokens_across_devices:
                tokens *= args.world_size
            speeds = {"samples_per_second": rows / seconds, "trained_tokens_per_second": tokens / seconds}
            found |= {name: round(speed, 3) for name, speed in speeds.items() if speed}
            before, self._tokens = self._tokens, tokens_seen(self._trainer)
            if self._utilisation is not None and self._tokens > before:
                share = self._utilisation.share(self._tokens - before, seconds + found["data_seconds"])
                found["mfu_percent"] = round(100 * share, 3)
        self._record(found, state.global_step)
