"""The progress of the training: one line per log, and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.console import RunConsole
from fmstune.trackers.values.stages import split_stages
from fmstune.training.trainers.nonfinite import COUNTER

_BEFORE = (("loss", "loss"), ("learning_rate", "lr"))
_AFTER = (("tokens_per_second", "tokens/s"), (COUNTER, "skipped"))
"""Metrics of all methods, with their short names, before and after each method's own."""
_MOST_COMPUTED = 8
"""The maximum number of metrics of `compute_metrics` in a line."""


_EVERY_SECONDS = 10.0


class BatchesCallback(TrainerCallback):
    """Print the number of evaluated batches every ten seconds."""

    def __init__(self, out: RunConsole) -> None:
        self._out, self._last = out, time.monotonic()
        self._evaluated, self._loader = 0, None

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if eval_dataloader is not self._loader:  # of another named set
            self._evaluated, self._loader = 0, eval_dataloader
        self._evaluated += 1
        if time.monotonic() - self._last >= _EVERY_SECONDS:
            self._last = time.monotonic()
            self._out.say("eval", f"batch {self._evaluated:,}/{len(eval_dataloader):,}")


class LastStepCallback(TrainerCallback):
    """Log the last step too, even between two others: a short run would log no loss at all, and the end of
    a long one would be unknown. A run that is stopped or interrupted logs its last steps as well."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps and args.logging_strategy != "no":
            control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # After the last step of a stopped run, too. The Trainer logs no step twice.
        if control.should_training_stop and args.logging_strategy != "no":
            control.should_log = True


class ProgressCallback(TrainerCallback):
    """Show logs and progress, and keep the last values. `shown` are the method's metrics in these lines, each
    with its short name; `computed` are the names of those of `compute_metrics`, also later ones."""

    reads_checkpoints = False

    def __init__(
        self, out: RunConsole, shown: Sequence[tuple[str, str]], computed: Collection[str] = ()
    ) -> None:
        self._out = out
        self._computed = computed
        self._shown = (*_BEFORE, *shown, *_AFTER)
        self._evaluated = 0
        self._loader: Any = None
        self._began: float | None = None
        self._first_step = 0
        self.metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began, self._first_step = time.perf_counter(), state.global_step
        if args.torch_compile:  # the log of a first step that takes minutes must not look like that of a hang
            self._out.say("compile", "torch compiles the model in the first steps, which can take minutes")
        self._train(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._out.moved(state.global_step, state.max_steps)
        # `control` determines what the Trainer does next, in this order.
        if control.should_evaluate:
            self._out.phase("evaluating")
        elif control.should_save:
            self._out.phase("saving a checkpoint")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._train(state)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if eval_dataloader is not self._loader:  # of another named set
            self._evaluated, self._loader = 0, eval_dataloader
        self._evaluated += 1
        self._out.moved(
            self._evaluated, len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
        )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._evaluated, self._loader = 0, None
        self._out.phase("saving a checkpoint") if control.should_save else self._train(state)

    def _train(self, state: TrainerState) -> None:
        self._out.phase("training", state.max_steps)
        self._out.moved(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for stage, values in split_stages(logs or {}).items():
            numbers = {f"{stage}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
            self.metrics |= numbers
            if stage == "train" and COUNTER in values and "loss" not in values:
                self._out.say("step", f"{state.global_step}/{state.max_steps}  skipped")
            if "loss" not in values:
                continue
            self._out.logged(stage, state.global_step, state.max_steps, numbers, self._figures(values))

    def _figures(self, values: Mapping[str, Any]) -> str:
        computed = [(name, name) for name in [*self._computed][:_MOST_COMPUTED]]
        shown = [
            (short, values[name])
            for name, short in (*self._shown, *computed)
            if isinstance(values.get(name), (int, float))
        ]
        return "  ".join(
            # Rates of tens of thousands are more readable as integers.
            f"{short} {value:,.0f}" if value >= 1000 else f"{short} {value:.4g}"
            for short, value in shown
        )

    def seconds_and_steps(self, state: TrainerState) -> tuple[float, int]:
        """The time since the training started, in seconds, and the steps in it."""
        if self._began is None:  # no step was left
            return 0.0, 0
        return time.perf_counter() - self._began, state.global_step - self._first_step
