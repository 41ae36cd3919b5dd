"""What a class must have to be used as a tracker, whatever its base class.

Each flaw found here would otherwise lose data in silence, or fail later with an error that does not name its
cause.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Limits

_METRICS = ("track", "track_point", "track_points")
_CALLED = (
    *_METRICS, "track_table", "track_media", "track_artifact", "set_params", "open", "open_alone", "resumed",
    "appear", "flush", "holds", "is_stored", "train_ended", "close", "check", "get_hf_callback",
)  # fmt: skip
"""The methods that fmstune calls."""
GUARANTEES: Mapping[str, tuple[Any, ...]] = {
    "idempotent": (True, False),
    "repeated_steps": ("replaced", "kept"),
    "takes_late": (True, False),
    "takes_params": ("merged", "given"),
    "durable_on": ("call", "close"),
}
"""The values of each guarantee that a tracker may declare."""


def flaw_of(found: Any) -> str | None:
    """Why a class cannot be used as a tracker, as the end of a sentence that begins with its name; `None` if
    it can."""
    if not (isinstance(found, type) and callable(getattr(found, "track", None))):
        return "is not a class with a method `track`"
    if not _takes_metrics(found):
        methods = ", ".join(f"`{method}`" for method in _METRICS)
        return f"would drop all metrics; define one of {methods} in it"
    return _of_methods(found) or _of_declarations(found) or _of_constructor(found)


def options_class(tracker: Any) -> type[Any] | None:
    """The dataclass of a tracker's options. `None` if it declares none, as a class of an older shape, where
    `Config` may be anything."""
    declared = getattr(tracker, "Config", None)
    return declared if isinstance(declared, type) and dataclasses.is_dataclass(declared) else None


def description_of(tracker: Any) -> str:
    """A tracker's own description; the inherited one is that of `none`."""
    own = issubclass(tracker, Tracker) and (tracker is Tracker or "description" in _own_attributes(tracker))
    return str(tracker.description) if own else ""


def _own_attributes(tracker: type[Any]) -> set[str]:
    """The names that a class or its bases below `Tracker` define."""
    bases = (base for base in tracker.__mro__ if base not in Tracker.__mro__)
    return {name for base in bases for name in vars(base)}


def takes_step(track: Any) -> bool:
    """Whether `track` can be called with the keyword `step`."""
    try:
        parameters = inspect.signature(track).parameters.values()
    except (TypeError, ValueError):  # written in C, where only a call can tell
        return True
    return any(p.name == "step" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def is_current(tracker: Any) -> bool:
    """Whether a class has the current interface, and not an older one."""
    return issubclass(tracker, Tracker) and takes_step(tracker.track)


def _takes_metrics(tracker: Any) -> bool:
    """Whether a class does anything with metrics: those that it inherits from `Tracker` do nothing. With one
    of its own to ignore them, or with a vendor's callback, that is what it was written for."""
    if tracker is Tracker or not issubclass(tracker, Tracker):
        return True
    methods = (*_METRICS, "get_hf_callback")
    return any(getattr(tracker, method) is not getattr(Tracker, method) for method in methods)


def _of_methods(tracker: Any) -> str | None:
    """A call of such a method would return at once, without having run any of its code."""
    for name in _CALLED:
        method = getattr(tracker, name, None)
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            return f"has an async `{name}`, which nothing awaits; make it a plain method"
        if inspect.isgeneratorfunction(method):
            return f"has a `yield` in `{name}`, which nothing iterates over; remove it"
    return None


def _of_declarations(tracker: Any) -> str | None:
    declared = getattr(tracker, "Config", None)
    if issubclass(tracker, Tracker) and declared is not None and options_class(tracker) is None:
        return "has a `Config` that is not a dataclass; make it one, with a field for each option"
    for name, values in GUARANTEES.items():
        given = getattr(tracker, name, values[0])
        if not isinstance(given, property) and given not in values:
            return f"has {name} = {given!r}; make it one of {', '.join(map(repr, values))}"
    limits = getattr(tracker, "limits", None)
    if limits is not None and not isinstance(limits, (Limits, property)):
        return f"has limits = {limits!r:.100}; make it a `Limits`"
    package = getattr(tracker, "package", None)
    if package is not None and not isinstance(package, str):
        return f"has package = {package!r:.100}; make it the name that is imported"
    return None


def _of_constructor(tracker: Any) -> str | None:
    if not is_current(tracker):  # of which only what its constructor takes is passed
        return None
    try:
        inspect.signature(tracker).bind("name", {})
    except ValueError:
        return None
    except TypeError:
        return (
            "has an `__init__` that does not take `name` and `tracker_config`; let it take both, and pass "
            "them to that of `Tracker`"
        )
    return None
