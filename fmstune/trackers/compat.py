"""Trackers of an older shape: any class with `track(metric, name, stage)`, whatever its base class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fmstune.trackers.base import Tracker, vendors_callback
from fmstune.trackers.records import Artifact, Check, Media, RunStart, Status, Table, TrackerRun
from fmstune.trackers.registry import load_reference

_GUARANTEES = (
    "limits",
    "idempotent",
    "repeated_steps",
    "takes_late",
    "takes_params",
    "durable_on",
    "media",
    "takes_artifacts",
    "refers_to_files",
)


def build_tracker(reference: str, name: str, options: Mapping[str, Any]) -> Tracker:
    """The tracker of `reference` with its options, behind the current interface whatever its shape.

    Raises `BrokenTracker` or `TrackerOptionError`, and whatever the tracker's own `__init__` raises.
    """
    found: Any = load_reference(reference, name)
    if isinstance(found, type) and issubclass(found, Tracker) and takes_step(found.track):
        return found(name, options)
    return _of_inner(found)(name, found(name=name, tracker_config=dict(options)))


def own_callback_of(tracker: Tracker) -> Any:
    """The vendor's callback that a tracker provides (see `vendors_callback`)."""
    return vendors_callback(tracker.inner if isinstance(tracker, OldShapeTracker) else tracker)


def takes_step(track: Any) -> bool:
    """Whether `track` can be called with the keyword `step`."""
    parameters = inspect.signature(track).parameters.values()
    return any(p.name == "step" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


class OldShapeTracker(Tracker):
    """Call an older tracker's `track` exactly as `(metric, name, stage)`, and those hooks that it has."""

    def __init__(self, name: str, inner: Any) -> None:
        super().__init__(name)
        self.inner = inner

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # The tracker expects the base class's attributes of the delivered event on itself.
        if name in ("seq", "step", "event_time") and isinstance(getattr(self, "inner", None), Tracker):
            setattr(self.inner, name, value)

    def open(self, start: RunStart) -> TrackerRun:
        return self.inner.open(start) if hasattr(self.inner, "open") else super().open(start)

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage)
        self.inner.track(metric, name, stage)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if hasattr(self.inner, "set_params"):
            self.inner.set_params(params, name)

    def track_table(self, table: Table) -> None:
        if hasattr(self.inner, "track_table"):
            self.inner.track_table(table)
        else:
            super().track_table(table)

    @property
    def hears_of_resumes(self) -> bool:
        return hasattr(self.inner, "resumed")

    def resumed(self, step: int) -> None:
        if hasattr(self.inner, "resumed"):
            self.inner.resumed(step)

    def track_media(self, media: Media) -> None:
        if hasattr(self.inner, "track_media"):
            self.inner.track_media(media)

    def track_artifact(self, artifact: Artifact) -> None:
        if hasattr(self.inner, "track_artifact"):
            self.inner.track_artifact(artifact)

    def flush(self) -> None:
        if hasattr(self.inner, "flush"):
            self.inner.flush()

    def close(self, status: Status, error: str | None = None) -> None:
        if hasattr(self.inner, "close"):
            self.inner.close(status, error)

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        known = hasattr(self.inner, "is_stored")
        return self.inner.is_stored(start, last) if known else super().is_stored(start, last)

    @property
    def adapted(self) -> tuple[str, ...]:
        return tuple(getattr(self.inner, "adapted", ()))

    def holds(self, last: int) -> bool:
        return self.inner.holds(last) if hasattr(self.inner, "holds") else super().holds(last)

    def check(self, timeout: float) -> Check:
        return self.inner.check(timeout) if hasattr(self.inner, "check") else super().check(timeout)


def _of_inner(found: Any) -> type[OldShapeTracker]:
    """A class with the inner class's guarantees and limits, where it declares any."""
    said = {name: getattr(found, name) for name in _GUARANTEES if hasattr(found, name)}
    return type("OldShapeTracker", (OldShapeTracker,), said)
