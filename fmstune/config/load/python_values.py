"""Convert values passed from Python to those that a TOML file can hold."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fmstune.config.schema.data import DataSource
from fmstune.errors import ConfigError
from fmstune.text import shown, shown_key

_UNCHANGED = (type(None), bool, int, float, str, datetime.date, datetime.time, DataSource)


_OF_OBJECTS: dict[tuple[str, ...], str] = {
    (
        "tracking",
        "trackers",
    ): 'register its class, fmstune.register_tracker("NAME", CLASS), and use that name',
    ("run", "callbacks"): "pass it as an argument of fmstune.train, callbacks=[…]",
}
"""What to do with a class or an instance, where a setting names one."""
_SOURCES = (("data", "train"), ("data", "eval"))
_OF_SOURCES = {each.name for each in dataclasses.fields(DataSource)}
_SAVED_BY = {
    "save_to_disk": "save it with .save_to_disk(FOLDER), and give the folder",
    "to_parquet": "save it with .to_parquet(FILE), and give the file",
    "save_pretrained": "save it and its tokenizer with .save_pretrained(FOLDER), and give the folder",
}
"""How to save an object whose file is a setting, by a method that it has."""


def from_python(value: Any, where: str, *parts: str) -> Any:
    """Convert a value for TOML: paths to strings, enum members to their values, scalars and arrays of NumPy
    and torch to numbers and lists. Raises `ConfigError` for a value that no file could hold; `parts` are the
    parts of its key."""
    if type(value) in _UNCHANGED:
        return value
    if isinstance(value, os.PathLike):
        return from_python(os.fspath(value), where, *parts)
    if isinstance(value, enum.Enum):
        return from_python(value.value, where, *parts)
    if isinstance(value, Mapping):
        wrong = next((name for name in value if not isinstance(name, str)), None)
        if wrong is not None:
            raise ConfigError(f"{where}: {shown_key(*parts)} has the key {shown(wrong)}; keys are strings.")
        return {name: from_python(item, where, *parts, name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        if parts in _SOURCES and any(
            isinstance(each, Mapping) and not each.keys() & _OF_SOURCES for each in value
        ):
            raise ConfigError(
                f"{where}: {shown_key(*parts)} is a list of rows: write them to a file, one JSON object per "
                "line, and give the file."
            )
        return [from_python(item, where, *parts) for item in value]
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return from_python(value.tolist(), where, *parts)
    for kind in (bool, int, float, str):  # a subclass of one of these
        if isinstance(value, kind):
            return kind(value)
    hint = (
        _OF_OBJECTS.get(parts)
        or _saved(value, parts)
        or "use a string, a number, a boolean, or a list or table of them"
    )
    if isinstance(value, (set, frozenset)):
        hint = "use a list, which has an order"
    raise ConfigError(f"{where}: {shown_key(*parts)} is of the type {type(value).__name__}: {hint}.")


def _saved(value: Any, parts: Sequence[str]) -> str | None:
    """How to save an object that is passed instead of its path; `None` where nothing can be saved."""
    if parts[0] not in ("model", "data"):
        return None
    return next((how for method, how in _SAVED_BY.items() if callable(getattr(value, method, None))), None)
