"""Trackers that bring a vendor's callback: they work in the training process, inside a guard.

What such a tracker raises disables it, with a warning, and the run continues. A hang cannot be cured here,
which is why `fmstune trackers list` marks them.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fmstune.delivery.ledger import Ledger
from fmstune.delivery.process_state import kept
from fmstune.delivery.shipping.process import Job
from fmstune.secrets.redaction import process_redactor
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Status, Table
from fmstune.trackers.values.plain import text_of
from fmstune.user_code import is_stop


class GuardedTracker:
    """A tracker whose every call is guarded; `warn` gets the reason, once, when it is disabled."""

    def __init__(self, tracker: Tracker, warn: Callable[[str], None], job: Job | None = None) -> None:
        self.tracker = tracker
        self.job = job
        self._warn = warn
        self.trouble: str | None = None

    def get_hf_callback(self) -> TrainerCallback:
        """The tracker's own callback, guarded; one that does nothing when it cannot be had."""
        inner = getattr(self.tracker, "inner", self.tracker)
        callback = self.guard(inner.get_hf_callback)()
        return TrainerCallback() if callback is None else _guarded(callback, self.guard)

    def track(self, metric: Any, name: str, stage: str | None, step: int | None) -> None:
        """Pass on a metric of the user's own; those of the Trainer reach the vendor's callback itself."""
        self.guard(self.tracker.track)(metric, name, stage, step=step)

    def set_params(self, params: Mapping[str, Any], name: str | None) -> None:
        """Pass on the run's params."""
        self.guard(self.tracker.set_params)(params, name)

    def track_table(self, table: Table) -> None:
        """Pass on a table."""
        self.guard(self.tracker.track_table)(table)

    def close(self, status: Status, error: str | None) -> None:
        """Pass on the run's end."""
        self.guard(self.tracker.close)(status, error)

    def note_failure(self, directory: Path) -> None:
        """Give a tracker that has failed a ledger, by which `trackers sync` delivers the run to it. Raises
        `OSError`."""
        if self.trouble is not None and self.job is not None:
            note_failed(directory, self.job, self.trouble)

    def guard(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, which does nothing once the tracker has failed, and makes it fail by raising."""

        @functools.wraps(call)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.trouble is not None:
                return None
            try:
                with kept():
                    return call(*args, **kwargs)
            # Whatever it is, it must not reach the training: `asyncio.CancelledError` and the panics of Rust
            # extensions are no `Exception`.
            except BaseException as error:
                if is_stop(error):
                    raise
                self.trouble = f"{type(error).__name__}: {text_of(error)}"
                self._warn(f"the tracker {self.tracker.name} is disabled for this run: {self.trouble}")
                return None

        return guarded


def note_failed(directory: Path, job: Job, trouble: str) -> None:
    """Note in a ledger that a tracker has not got all of the run, and why. Raises `OSError`."""
    ledger = Ledger(
        job.name,
        job.reference,
        process_redactor().mapping(job.options),
        str(Path.cwd()),
        error=f"it works in the training process, and was disabled there: {trouble}",
        error_time=time.time(),
    )
    ledger.save(directory)


def _guarded(callback: TrainerCallback, guard: Callable[..., Any]) -> TrainerCallback:
    """A callback of the same events, each guarded. What it changes in the arguments, the state, the control,
    the logs or the metrics is kept from the Trainer, and so is what it does to the process (`process_state`):
    a tracker has no say in the training."""
    events = [name for name in dir(TrainerCallback) if name.startswith("on_")]

    def event(name: str) -> Callable[..., None]:
        inner = getattr(callback, name)

        def called(args: Any, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
            own = {key: _copied(value) for key, value in kwargs.items()}
            # The arguments are not copied deeply: some hold open handles, and nothing in them is a number
            # that the Trainer reads again by reference.
            inner(_shallow(args), _own_state(state), copy.copy(control), **own)

        guarded = guard(called)

        def call(self: TrainerCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            guarded(args, state, control, kwargs)

        return call

    methods: dict[str, Any] = {name: event(name) for name in events if hasattr(callback, name)}
    guarded: TrainerCallback = type("Guarded" + type(callback).__name__, (TrainerCallback,), methods)()
    return guarded


def _own_state(state: Any) -> Any:
    """A copy of the Trainer's state. Its history grows with the run, so that a copy of all of it at each
    event would take time by the square of the steps: the list is copied, and of its entries the last one."""
    own = _shallow(state)
    history = getattr(own, "log_history", None)
    if isinstance(history, list) and history:
        own.log_history = [*history[:-1], _copied(history[-1])]
    return own


def _shallow(value: Any) -> Any:
    """A copy of an object whose own lists and mappings are copies, too."""
    own = copy.copy(value)
    for name, held in vars(value).items():
        if name != "log_history":
            vars(own)[name] = _copied(held)
    return own


def _copied(value: Any) -> Any:
    """A copy of plain data, all through; models, tensors, optimizers and data loaders stay what they are."""
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if type(value) is list else value
