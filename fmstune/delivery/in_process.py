"""Trackers that bring a vendor's callback: they work in the training process, inside a guard.

What such a tracker raises disables it, with a word, and the run goes on. A hang cannot be cured here,
which is why `fmstune trackers list` marks them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from fmstune.trackers.base import Status, Table, Tracker


class GuardedTracker:
    """A tracker whose every call is guarded; `warn` is told, once, why it was disabled."""

    def __init__(self, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self.tracker = tracker
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

    def guard(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, which does nothing once the tracker has failed, and makes it fail by raising."""

        @functools.wraps(call)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.trouble is not None:
                return None
            try:
                return call(*args, **kwargs)
            except (
                Exception,
                SystemExit,
            ) as error:  # whatever it is, it must not reach the training
                self.trouble = f"{type(error).__name__}: {error}"
                self._warn(f"the tracker {self.tracker.name} is disabled for this run: {self.trouble}")
                return None

        return guarded


def _guarded(callback: TrainerCallback, guard: Callable[..., Any]) -> TrainerCallback:
    """A callback of the same events, each guarded. What it changes in `control` is kept from the Trainer:
    a tracker has no say in the training."""
    events = [name for name in dir(TrainerCallback) if name.startswith("on_")]

    def event(name: str) -> Callable[..., None]:
        inner = guard(getattr(callback, name))

        def call(self: TrainerCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            inner(args, state, copy.copy(control), **kwargs)

        return call

    methods: dict[str, Any] = {name: event(name) for name in events if hasattr(callback, name)}
    guarded: TrainerCallback = type("Guarded" + type(callback).__name__, (TrainerCallback,), methods)()
    return guarded
