"""The callbacks that feed a tracker from a `transformers.Trainer`: that of the Recorder, which sits in front
of all trackers in `fmstune train`, and that of a tracker in the user's own Trainer."""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.secrets.redaction import hide, process_redactor
from fmstune.trackers.records import MetricPoint, Receiver, RunStart, Status, TrackerError
from fmstune.trackers.standalone import (
    MOST_APPEARED,
    Guard,
    adapted,
    close_at_exit,
    closed,
    note_training,
    status_so_far,
)
from fmstune.trackers.values.plain import number, plain
from fmstune.trackers.values.stages import split_stages

if TYPE_CHECKING:
    from fmstune.trackers.values.normalise import Normaliser

_MOST_NAMES = 10_000


class TrackerCallback(TrainerCallback):
    """Feed a tracker all that the Trainer logs, on world rank zero only. The run is opened elsewhere."""

    def __init__(self, tracker: Receiver) -> None:
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
            logs.update(self._tokens_per_second(logs))  # in place, for the callbacks that follow
        for point in points(logs, state):
            self.tracker.track_point(point)

    def count_tokens_from(self, seen: int) -> None:
        """Set the count of tokens at the start of a resumed training: those before it took no time here."""
        self._tokens = float(seen)

    def _tokens_per_second(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Tokens of the steps since the last log, over the time spent in those steps only: evaluations and
        checkpoints are excluded, so that the figure is comparable between runs."""
        tokens = values.get("num_tokens")
        if not isinstance(tokens, (int, float)) or self._step_seconds <= 0:
            return {}
        speed = (tokens - self._tokens) / self._step_seconds
        self._tokens, self._step_seconds = float(tokens), 0.0
        return {"tokens_per_second": speed} if speed > 0 else {}


_Event = TypeVar("_Event", bound=Callable[..., None])


def _guarded(event: _Event) -> _Event:
    """Wrap an event of `OwnRunCallback` so that it never raises into the Trainer."""

    @functools.wraps(event)
    def call(self: OwnRunCallback, *args: Any, **kwargs: Any) -> None:
        self._guard.shield(functools.partial(event, self, *args, **kwargs))

    return cast(_Event, call)


class OwnRunCallback(TrackerCallback):
    """Feed a standalone tracker in the user's own Trainer: one run for any number of trainings and
    evaluations, and one for each trial of a hyperparameter search.

    The first event opens the run; the end of the process (or `close`) closes it. `train_ended` makes it
    visible as finished before that. Events after `close` are refused and counted. Secrets are redacted and
    values adapted to the tracker's limits. No error, of the tracker or with a value, leaves a method, unless
    `strict`.
    """

    def __init__(self, tracker: Receiver, *, strict: bool = False) -> None:
        super().__init__(tracker)
        self.strict = strict
        self._guard = Guard(tracker.name, strict=strict)
        self._normaliser = self._new_normaliser()
        self._run_id = uuid.uuid4().hex
        self._open = False
        self._clear_names: set[str] = set()
        self._appeared: set[tuple[str | None, str]] = set()
        self._last: tuple[Any, int] = (None, 0)
        self._trials = 0
        self._trial_name: str | None = None  # of the open run, if it is that of a trial
        self.closed = False

    @_guarded
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self._separate_trials(args, state)
        if not (state.is_world_process_zero and self._opened(args)):
            return
        note_training(self.tracker, going=True)
        # `to_sanitized_dict` masks the hub token; nested settings are stored as text, as W&B's own callback
        # does.
        self._guard.attempt(lambda: self._set_params(args.to_sanitized_dict(), "training"))
        model_config: Any = getattr(kwargs.get("model"), "config", None)
        if hasattr(model_config, "to_dict"):
            self._guard.attempt(lambda: self._set_params(model_config.to_dict(), "model"))
        if isinstance(state.trial_params, Mapping):
            self._guard.attempt(self._set_params, state.trial_params, "trial")
        self._guard.attempt(self.tracker.appear, values=0)

    @_guarded
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_step_begin(args, state, control, **kwargs)

    @_guarded
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_step_end(args, state, control, **kwargs)

    @_guarded
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # A Trainer with this callback added twice logs once, and calls it twice.
        last, self._last = self._last, (logs, len(state.log_history))
        if not (state.is_world_process_zero and logs) or (last[0] is logs and last[1] == self._last[1]):
            return
        speed = self._tokens_per_second(logs) if "loss" in logs else {}
        logged = points({**logs, **speed}, state)
        if self._opened(args):
            for point in logged:
                self._track(point)
            self._appear(logged)
        else:
            self._guard.lost += sum(len(point.values) for point in logged)

    @_guarded
    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.on_log(args, state, control, metrics)  # `Trainer.predict` passes them to no other event

    @_guarded
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self._open:
            note_training(self.tracker, going=False)
            self._guard.attempt(self.tracker.train_ended, "finished", values=0)

    def close(self, status: Status | None = None, error: str | None = None) -> None:
        """Close the run now, rather than when the process ends; later events are refused. Without a `status`,
        a run whose training has not ended is `failed`, or `interrupted` by Ctrl-C; otherwise `finished`."""
        self.closed = True
        if self._open:
            if status is None:
                status, error = status_so_far(self.tracker)
            self._end_run(status, error)

    def _end_run(self, status: Status, error: str | None) -> None:
        self._open = False
        text = None if error is None else hide(error)
        self._guard.close(self.tracker, status, text)
        self._guard.lost = 0
        closed(self.tracker)

    def _separate_trials(self, args: TrainingArguments, state: TrainerState) -> None:
        """End the open run if a trial begins, or a training after one: each has values of the same steps."""
        if not state.is_hyper_param_search and self._trial_name is None:
            return
        if self._open:
            status, error = status_so_far(self.tracker)
            # A search goes on after a trial that it prunes, which ends by an exception.
            self._end_run("interrupted" if status == "failed" and error is None else status, error)
        self._run_id, self._last = uuid.uuid4().hex, (None, 0)
        self._normaliser = self._new_normaliser()
        self._appeared.clear()
        self._tokens = self._step_seconds = 0.0
        self._trial_name = None
        if state.is_hyper_param_search:
            self._trial_name = state.trial_name or f"{args.run_name or 'run'}-trial-{self._trials}"
            self._trials += 1

    def _new_normaliser(self) -> Normaliser:
        from fmstune.trackers.values.normalise import Normaliser

        return Normaliser(self.tracker.limits)

    def report_shared(self) -> None:
        """Report that this callback was requested again."""
        self._guard.report(
            "get_hf_callback() returned the same callback again, since a tracker has one run; for "
            "another run, close() this one first, or create another tracker with get_tracker()."
        )

    def _opened(self, args: TrainingArguments) -> bool:
        """Whether the run is open; the first event opens it."""
        if self.closed:
            self._guard.refuse(
                "its run is closed, and what is logged after close() is not tracked; "
                "get_hf_callback() returns a callback with its own run."
            )
        elif not self._open and not self._guard.given_up:
            name, directory = hide(str(self._trial_name or args.run_name or "run")), args.output_dir or "."
            start = RunStart(name, directory, trainer_pid=os.getpid(), run_id=self._run_id)
            self._open = self._guard.attempt(self.tracker.open, start, vital=True)
            if self._open:
                close_at_exit(self.tracker, self._guard)
        return self._open and not self._guard.given_up

    def _set_params(self, params: Mapping[str, Any], name: str) -> None:
        found = process_redactor().mapping(plain(params), name, tracked=True)
        namespace = self._normaliser.namespace(name)
        self.tracker.set_params(self._normaliser.params(found, namespace), namespace)
        self._report_changes()

    def _track(self, point: MetricPoint) -> None:
        numbers = {name: number(value) for name, value in point.values.items()}
        values = self._normaliser.metrics(self._redacted(numbers), point.stage)
        self._report_changes()
        if not values:
            return
        tracker = self.tracker
        if tracker.takes_whole_points:
            point = point._replace(values=values)
            self._guard.attempt(tracker.track_point, point, values=len(values))
            return
        for name, value in values.items():  # a refused value must not affect the others
            single = point._replace(values={name: value})
            self._guard.attempt(tracker.track_point, single)

    def _appear(self, logged: list[MetricPoint]) -> None:
        names = {(point.stage, name) for point in logged for name in point.values}
        if len(self._appeared) < MOST_APPEARED and not names <= self._appeared:
            self._appeared |= names
            self._guard.attempt(self.tracker.appear, values=0)

    def _redacted(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The metrics without secrets; numbers under names that were checked before cost nothing."""
        if values.keys() <= self._clear_names and all(type(each) in (float, int) for each in values.values()):
            return values
        redacted = process_redactor().metrics(values)
        if len(self._clear_names) < _MOST_NAMES:
            self._clear_names |= values.keys() & redacted.keys()
        return redacted

    def _report_changes(self) -> None:
        for change in self._normaliser.changes:
            self._guard.report(adapted(change))


def own_callback(tracker: Receiver, *, strict: bool = False) -> OwnRunCallback:
    """The callback of a standalone tracker. As the tracker has one run, every call returns the same callback
    until that is closed.

    Raises `TrackerError` when it is requested both with and without `strict`.
    """
    given = tracker.own_callback
    if isinstance(given, OwnRunCallback) and not given.closed:
        if given.strict != strict:
            raise TrackerError(
                f"The callback of this tracker {tracker.name} was created with strict={given.strict}; "
                "request the same, or create another tracker with get_tracker()."
            )
        given.report_shared()
        return given
    # transformers warns about two callbacks of the same class in a Trainer.
    of_its_own = type(f"{type(tracker).__name__}Callback", (OwnRunCallback,), {})
    made: OwnRunCallback = of_its_own(tracker, strict=strict)
    tracker.own_callback = made
    return made


def points(logs: Mapping[str, Any], state: TrainerState) -> list[MetricPoint]:
    """What a Trainer logs, as one point per stage."""
    epoch = logs.get("epoch", state.epoch)
    return [
        MetricPoint(values, stage, state.global_step, epoch, time.time())
        for stage, values in split_stages(logs).items()
    ]
