"""Trackers of any shape behind the current interface. An older one is any class with
`track(metric, name, stage)`, whatever its base class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.trackers.base import Tracker, vendors_callback
from fmstune.trackers.records import (
    Artifact,
    Check,
    Media,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerOptionError,
    TrackerRun,
)
from fmstune.trackers.shapes import is_current, options_class

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
    "places",
)


def built(found: Any, name: str, options: Mapping[str, Any] | None, where: str = "") -> Tracker:
    """The tracker of a class with its options, behind the current interface whatever its shape. `where` the
    options were given starts a message about them.

    Raises `TrackerOptionError`, and whatever the tracker's own `__init__` raises.
    """
    _check_types(found, name, options or {}, where)
    if is_current(found):
        tracker: Tracker = found(name, options)
        for attribute, value in vars(Tracker(name)).items():
            if not hasattr(tracker, attribute):  # its `__init__` does not call that of `Tracker`
                setattr(tracker, attribute, value)
        return tracker
    return _of_inner(found)(name, found(**_constructor_arguments(found, name, options or {})))


def own_callback_of(tracker: Tracker) -> Any:
    """The vendor's callback that a tracker provides (see `vendors_callback`)."""
    return vendors_callback(tracker.inner if isinstance(tracker, OldShapeTracker) else tracker)


def _check_types(found: Any, name: str, options: Mapping[str, Any], where: str) -> None:
    """Raise `TrackerOptionError` for an option that does not have the type of its field. The class itself
    rejects those that it does not have."""
    declared = options_class(found)
    if declared is None or not options:
        return
    import dataclasses

    from fmstune.config.check.typed import check_field, is_checked
    from fmstune.errors import ConfigError

    fields = {field.name: field for field in dataclasses.fields(declared)}
    try:
        for key in options.keys() & fields:
            if is_checked(fields[key]):
                check_field(options[key], fields[key], where="", key=f"trackers.{name}.{key}")
    except ConfigError as error:
        raise TrackerOptionError(where + str(error).removeprefix(": ")) from None


def _constructor_arguments(found: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the constructor of an older shape takes; it need not have one."""
    given = {"name": name, "tracker_config": dict(options)}
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return given
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return given
    taken = {each.name for each in parameters if each.kind is not inspect.Parameter.POSITIONAL_ONLY}
    if options and "tracker_config" not in taken:
        raise TrackerOptionError(
            f"{name} has no options: the constructor of its class does not take `tracker_config`."
        )
    return {key: value for key, value in given.items() if key in taken}


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

    def __getattr__(self, name: str) -> Any:
        # What its author gave it, for one who uses it in a script.
        if name == "inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def takes_whole_points(self) -> bool:
        return isinstance(self.inner, Tracker) and self.inner.takes_whole_points

    @property
    def buffers(self) -> bool:
        return hasattr(self.inner, "flush") and getattr(type(self.inner), "flush", None) is not Tracker.flush

    def open(self, start: RunStart) -> TrackerRun:
        return self.inner.open(start) if hasattr(self.inner, "open") else super().open(start)

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage)
        self.inner.track(metric, name, stage)

    def track_point(self, point: MetricPoint) -> None:
        if self.takes_whole_points:
            self.inner.track_point(point)
        else:
            self._track_each(point)

    def track_points(self, points: Iterator[MetricPoint]) -> None:
        if not self.takes_whole_points:
            super().track_points(points)
            return
        try:
            self.inner.track_points(points)
        finally:
            self.seq = self.inner.seq

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
