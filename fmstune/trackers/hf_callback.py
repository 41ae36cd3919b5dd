"""The one callback that feeds a tracker from a `transformers.Trainer`.

It is the callback of a tracker that somebody puts into a Trainer of his own, and the callback of the
Recorder that stands before all trackers in `fmstune train`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.trackers.base import MetricPoint, RunStart, Tracker

_STAGES = ("eval", "test")
_NOT_METRICS = ("epoch", "step")


class TrackerCallback(TrainerCallback):
    """Gives a tracker all that the Trainer logs, on world rank zero alone.

    With `owns_run` (the default) it also opens the run when the training begins, attaches the training
    arguments and the model's configuration, and closes the run when the training ends.
    """

    def __init__(self, tracker: Tracker, *, owns_run: bool = True) -> None:
        self.tracker = tracker
        self.owns_run = owns_run
        self._tokens = 0.0
        self._step_seconds = 0.0
        self._step_began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tracker.step = state.global_step
        if not (self.owns_run and state.is_world_process_zero):
            return
        name, directory = args.run_name or "run", args.output_dir or "."
        self.tracker.open(RunStart(name, directory, trainer_pid=os.getpid()))
        # `to_sanitized_dict` masks the hub token; nested settings are kept as text, as W&B's own does.
        self.tracker.set_params(args.to_sanitized_dict(), "training")
        model = kwargs.get("model")
        if model is not None and hasattr(model.config, "to_dict"):
            self.tracker.set_params(model.config.to_dict(), "model")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_seconds += time.perf_counter() - self._step_began
        self.tracker.step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        epoch = logs.get("epoch", state.epoch)
        if "loss" in logs:
            logs.update(self._tokens_per_second(logs))  # in place, for the callbacks that come after
        for stage, values in split_stages(logs).items():
            self.tracker.track_point(MetricPoint(values, stage, state.global_step, epoch, time.time()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.owns_run and state.is_world_process_zero:
            self.tracker.close("finished")

    def _tokens_per_second(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Tokens of the steps since the last log, over the time spent in those steps alone: neither
        evaluations nor checkpoints count, so that the figure can be compared between runs."""
        tokens = values.get("num_tokens")
        if not isinstance(tokens, (int, float)) or self._step_seconds <= 0:
            return {}
        speed = (tokens - self._tokens) / self._step_seconds
        self._tokens, self._step_seconds = float(tokens), 0.0
        return {"tokens_per_second": speed} if speed > 0 else {}


def split_stages(logs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort what the Trainer logs by stage: `eval_loss` is `loss` of the stage `eval`.

    Names that begin with neither `eval_` nor `test_` belong to the stage `train` and keep their name,
    `train_runtime` included, as transformers' own integrations have it.
    """
    stages: dict[str, dict[str, Any]] = {}
    for key, value in logs.items():
        if key in _NOT_METRICS or value is None:
            continue
        prefix, _, rest = key.partition("_")
        if prefix in _STAGES and rest:
            stages.setdefault(prefix, {})[rest] = value
        else:
            stages.setdefault("train", {})[key] = value
    return stages
