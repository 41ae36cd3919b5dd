"""Where a tracker's runs are stored, according to its options and its vendor's variables.

A run that is synced from another shell continues where it started, or reports that it does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fmstune.secrets.redaction import holds_redacted, process_redactor


def place_of(tracker: Any) -> dict[str, str]:
    """The settings that decide where the tracker's runs are stored: the first name with a value of each of
    its groups. Credentials are removed from addresses."""
    found: dict[str, str] = {}
    for group in _groups(tracker):
        for name in group:
            if value := _value(tracker, name):
                found[name] = value
                break
    return {name: str(value) for name, value in process_redactor().mapping(found).items()}


def return_to(tracker: Any, place: Mapping[str, str]) -> str | None:
    """Restore the variables of `place` in this process, if nothing currently decides where the runs are
    stored. Return the name of one that held a secret, which was not recorded."""
    for group in _groups(tracker):
        if any(_value(tracker, name) for name in group):
            continue
        for name in group:
            if name in place and _is_variable(name):
                if holds_redacted(place[name]):
                    return name
                os.environ[name] = place[name]
    return None


def other_place(tracker: Any, before: Mapping[str, str]) -> str | None:
    """A sentence about what differs from `before`; `None` if the location is the same."""
    now, was = place_of(tracker), []
    for group in _groups(tracker):
        then = next((name for name in group if name in before), None)
        here = next((name for name in group if name in now), None)
        if then is not None and (here is None or before[then] != now[here]):
            was.append(f"{then} was {before[then]}")
        elif then is None and here is not None:
            was.append(f"{here} was not set")
    return f"this is another place than before, where {' and '.join(was)}" if was else None


def _groups(tracker: Any) -> tuple[tuple[str, ...], ...]:
    return tuple(getattr(tracker, "places", ()))


def _is_variable(name: str) -> bool:
    return name.isupper()


def _value(tracker: Any, name: str) -> str:
    if _is_variable(name):
        return os.environ.get(name, "")
    config = tracker.config
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return "" if value is None else str(value)
