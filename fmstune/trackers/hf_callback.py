"""The callbacks that feed a tracker from a `transformers.Trainer`: that of the Recorder, which stands before
all trackers in `fmstune train`, and that of a tracker which somebody puts into a Trainer of his own."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.delivery.journal import plain
from fmstune.trackers.alone import Guard, adapted, close_at_exit, closed, note_training
from fmstune.trackers.base import MetricPoint, RunStart, Status, Tracker

_STAGES = ("eval", "test")
_NON_FINITE = ("NaN", "Infinity", "-Infinity")
_NOT_METRICS = ("epoch", "step")


class TrackerCallback(TrainerCallback):
    """Gives a tracker all that the Trainer logs, on world rank zero alone. Its run is somebody else's."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._tokens = 0.0
        self._step_seconds = 0.0
        self._step_began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tracker.step = state.global_step

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
        if "loss" in logs:
            logs.update(self._tokens_per_second(logs))  # in place, for the callbacks that come after
        for point in points(logs, state):
            self.tracker.track_point(point)

    def _tokens_per_second(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Tokens of the steps since the last log, over the time spent in those steps alone: neither
        evaluations nor checkpoints count, so that the figure can be compared between runs."""
        tokens = values.get("num_tokens")
        if not isinstance(tokens, (int, float)) or self._step_seconds <= 0:
            return {}
        speed = (tokens - self._tokens) / self._step_seconds
        self._tokens, self._step_seconds = float(tokens), 0.0
        return {"tokens_per_second": speed} if speed > 0 else {}


class OwnRunCallback(TrackerCallback):
    """Feeds a tracker that is used alone, in somebody's own Trainer: one run for one callback, however often
    it is trained and evaluated with.

    The run is opened by the first event and closed at the end of the process (or by `close`); `train_ended`
    makes it visible as finished before that. Values are adapted to the tracker's limits. What the tracker
    raises is logged and goes no further, unless `strict`.
    """

    def __init__(self, tracker: Tracker, *, strict: bool = False) -> None:
        from fmstune.delivery.normalise import Normaliser

        super().__init__(tracker)
        self._guard = Guard(tracker.name, strict=strict)
        self._normaliser = Normaliser(tracker.limits)
        self._run_id = uuid.uuid4().hex
        self._open = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if not (state.is_world_process_zero and self._opened(args)):
            return
        note_training(self.tracker, going=True)
        # `to_sanitized_dict` masks the hub token; nested settings are kept as text, as W&B's own does.
        self._guard.attempt(lambda: self._set_params(args.to_sanitized_dict(), "training"))
        model_config: Any = getattr(kwargs.get("model"), "config", None)
        if hasattr(model_config, "to_dict"):
            self._guard.attempt(lambda: self._set_params(model_config.to_dict(), "model"))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not (state.is_world_process_zero and logs and self._opened(args)):
            return
        speed = self._tokens_per_second(logs) if "loss" in logs else {}
        for point in points({**logs, **speed}, state):
            self._track(point)

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.on_log(args, state, control, metrics)  # `Trainer.predict` gives them to nobody else

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self._open:
            note_training(self.tracker, going=False)
            self._guard.attempt(self.tracker.train_ended, "finished", values=0)

    def close(self, status: Status = "finished", error: str | None = None) -> None:
        """Close the run now, rather than at the end of the process."""
        if self._open:
            self._open = False
            self._guard.attempt(self.tracker.close, status, error, values=0)
            self._guard.tell_lost()
            closed(self.tracker)

    def _opened(self, args: TrainingArguments) -> bool:
        """Whether the run is open; the first event opens it."""
        if not self._open and not self._guard.given_up:
            name, directory = args.run_name or "run", args.output_dir or "."
            start = RunStart(name, directory, trainer_pid=os.getpid(), run_id=self._run_id)
            self._open = self._guard.attempt(self.tracker.open, start, vital=True)
            if self._open:
                close_at_exit(self.tracker, self._guard)
        return self._open and not self._guard.given_up

    def _set_params(self, params: Mapping[str, Any], name: str) -> None:
        self.tracker.set_params(self._normaliser.params(plain(params)), self._normaliser.namespace(name))
        self._tell_changes()

    def _track(self, point: MetricPoint) -> None:
        adapt, tracker = self._normaliser, self.tracker
        values = adapt.metrics({name: number(value) for name, value in point.values.items()}, point.stage)
        self._tell_changes()
        if not values:
            return
        if type(tracker).track_point is not Tracker.track_point:
            point = dataclasses.replace(point, values=values)
            self._guard.attempt(tracker.track_point, point, values=len(values))
            return
        for name, value in values.items():  # a value that is refused takes none of the others with it
            single = dataclasses.replace(point, values={name: value})
            self._guard.attempt(tracker.track_point, single)

    def _tell_changes(self) -> None:
        for change in self._normaliser.changes:
            self._guard.tell(adapted(change))


def points(logs: Mapping[str, Any], state: TrainerState) -> list[MetricPoint]:
    """What a Trainer logs, as one point for each stage."""
    epoch = logs.get("epoch", state.epoch)
    return [
        MetricPoint(values, stage, state.global_step, epoch, time.time())
        for stage, values in split_stages(logs).items()
    ]


def number(value: Any) -> Any:
    """A metric as a number where it is one, whatever library it comes from, else as JSON could hold it."""
    if type(value) is float or type(value) is int:
        return value
    simple = plain(value)
    return float(simple) if simple in _NON_FINITE and not isinstance(value, str) else simple


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
