"""What a setting of another tool is here: the form of a rule, and the common ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fmstune.config.translate.foreign import Foreign

Here = dict[str, Any]
"""fmstune's settings, by dotted key."""
Rule = Callable[[Any, Foreign], Here]
"""Translates a value: to none if nothing is to be set. Raises `Left`."""


class Left(Exception):
    """A setting that has no translation; its text is what to do instead, or empty to take the advice there
    is on its name."""


def to(key: str) -> Rule:
    """The same value under this name."""
    return lambda value, theirs: {key: value}


def if_true(here: Here) -> Rule:
    """These settings, if the value is true."""
    return lambda value, theirs: dict(here) if value is True else {}


def list_of(key: str) -> Rule:
    """The names of a list, or of a text with commas."""

    def rule(value: Any, theirs: Foreign) -> Here:
        names = names_in(value)
        return {key: [names] if isinstance(names, str) else names}

    return rule


def names_in(value: Any) -> Any:
    """A list, for names with commas; a single string may be a regular expression."""
    if isinstance(value, str) and "," in value and not set("()[]|\\^*+?") & set(value):
        return [name.strip() for name in value.split(",") if name.strip()]
    return value


def nothing(value: Any, theirs: Foreign) -> Here:
    return {}


def one(value: Any, theirs: Foreign) -> Here:
    """A degree of parallelism."""
    if value != 1:
        raise Left("")
    return {}
