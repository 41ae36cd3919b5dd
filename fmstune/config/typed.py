"""Checking values against types: of the tables, of `SFTConfig`'s fields, of trackers' options."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from fmstune.config.errors import ConfigError, shown, shown_key
from fmstune.config.suggest import hint

T = TypeVar("T")


def read_dataclass(cls: type[T], given: Mapping[str, Any], *, where: str, prefix: str) -> T:
    """An instance of the dataclass `cls` from a table of the configuration.

    `where` is the place named in messages (`fmstune.toml`), `prefix` that of the keys (`lora`).
    Raises `ConfigError` for an unknown key, a wrong type, or a value out of bounds.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in given.items():
        if key not in fields:
            close = hint(key, fields)
            there = "" if close else f" There are {', '.join(fields)}."
            raise ConfigError(f"{where}: there is no setting {prefix}.{shown_key(key)}.{close}{there}")
        values[key] = check_field(value, fields[key], where=where, key=f"{prefix}.{key}")
    return cls(**values)


def check_field(value: Any, field: dataclasses.Field[Any], *, where: str, key: str) -> Any:
    """The value as the field takes it (a list for a tuple becomes one). Raises `ConfigError`."""
    annotation = field.type if isinstance(field.type, str) else _written(field.type)
    choices = field.metadata.get("choices")
    checked = check_value(value, annotation, where=where, key=key, choices=choices)
    if isinstance(checked, (int, float)) and not isinstance(checked, bool):
        low, below = field.metadata.get("min"), field.metadata.get("below")
        if (low is not None and checked < low) or (below is not None and checked >= below):
            bounds = " and ".join(
                [f"at least {low}"] * (low is not None) + [f"below {below}"] * (below is not None)
            )
            raise ConfigError(f"{where}: {key} = {shown(value)} is out of range; it is {bounds}.")
    return checked


def check_value(
    value: Any, annotation: str, *, where: str, key: str, choices: tuple[str, ...] | None = None
) -> Any:
    """The value, when it is one of the annotation's types. Raises `ConfigError` otherwise.

    A bool is no int, an int is a float, and no number is NaN or infinite.
    """
    for option in _options(annotation):
        fits, converted = _fit(value, option)
        if fits:
            if choices and isinstance(converted, str) and converted not in choices:
                close = hint(converted, choices)
                raise ConfigError(f"{where}: {key} = {shown(value)} is not one of {_listed(choices)}.{close}")
            return converted
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} = {value} is not a finite number.")
    wanted = f"one of {_listed(choices)}" if choices else _in_words(annotation)
    advice = _advice(value, annotation, where, key)
    raise ConfigError(f"{where}: {key} = {shown(value)} is {_kind(value)}; it takes {wanted}.{advice}")


def _listed(choices: tuple[str, ...]) -> str:
    """The choices; of very many (optimizers) the first."""
    if len(choices) <= 15:
        return ", ".join(choices)
    return f"{', '.join(choices[:6])} and {len(choices) - 6} others"


def _advice(value: Any, annotation: str, where: str, key: str) -> str:
    """How to write the value so that it fits, when there is a way; else nothing."""

    def takes(other: Any) -> bool:
        return any(_fit(other, option)[0] for option in _options(annotation))

    if isinstance(value, str):
        if value.lower() in ("true", "false") and takes(True):
            return f" Write {value.lower()}."
        if takes([value]):
            return f' Write ["{value}"].' if len(value) < 30 else " Put it in [ ]."
        for number in (int, float):
            try:
                if takes(number(value)):
                    return " Write it without quotes."
            except ValueError:
                continue
    elif not isinstance(value, (list, tuple, Mapping)) and takes("text"):
        # The shell takes the outer quotes away.
        return f""" Write '{key}="{shown(value)}"'.""" if where == "--set" else " Put it in quotes."
    return ""


def _fit(value: Any, option: str) -> tuple[bool, Any]:
    base = option.partition("[")[0]
    if base == "bool":
        return isinstance(value, bool), value
    if base == "int":
        return isinstance(value, int) and not isinstance(value, bool), value
    if base == "float":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value), value
    if base in ("None", "NoneType"):
        return value is None, value
    if base == "Any":
        return True, value
    if base in ("dict", "Mapping"):
        return isinstance(value, Mapping), value
    if base in ("list", "tuple", "Sequence"):
        if not isinstance(value, (list, tuple)):
            return False, value
        inner = option[len(base) + 1 : -1].replace(", ...", "") if "[" in option else "Any"
        fits = [any(_fit(item, kind)[0] for kind in _options(inner)) for item in value]
        return all(fits), tuple(value) if base == "tuple" else list(value)
    if base == "Literal":
        return value in ast.literal_eval(f"({option[8:-1]},)"), value
    # `str`, an enum's name, a class of TRL's: in a file all of these are texts.
    return isinstance(value, str), value


def _options(annotation: str) -> list[str]:
    """The alternatives of an annotation: `Optional[int]` and `int | None` are `int` and `None`."""
    text = annotation.replace("typing.", "").strip().strip("'\"")
    if text.startswith("Optional[") and text.endswith("]"):
        return [*_options(text[9:-1]), "None"]
    if text.startswith("Union[") and text.endswith("]"):
        return [option for part in _split(text[6:-1], ",") for option in _options(part)]
    parts = _split(text, "|")
    return parts if len(parts) == 1 else [option for part in parts for option in _options(part)]


def _split(text: str, separator: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "[(") - (char in "])")
        if char == separator and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _written(annotation: Any) -> str:
    if annotation is None:
        return "None"
    return (
        annotation.__name__
        if isinstance(annotation, type) and "[" not in str(annotation)
        else str(annotation)
    )


_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "None": "nothing",
    "dict": "a table",
    "Mapping": "a table",
    "list": "a list",
    "tuple": "a list",
}


_PLURALS = {"int": "whole numbers", "float": "numbers", "bool": "true or false", "dict": "tables"}


def _in_words(annotation: str) -> str:
    options = [option for option in _options(annotation) if option != "None"]
    return " or ".join(dict.fromkeys(_WORDS.get(option) or _list_in_words(option) for option in options))


def _list_in_words(option: str) -> str:
    base, _, inner = option.partition("[")
    if base == "Literal":
        return f"one of {inner[:-1]}"
    word = _WORDS.get(base, "a text")
    kinds = {_PLURALS.get(kind, "texts") for kind in _options(inner[:-1].replace(", ...", ""))}
    return f"{word} of {' or '.join(sorted(kinds))}" if word == "a list" and inner else word


_KINDS: tuple[tuple[Any, str], ...] = (
    (int, "a whole number"),
    (float, "a number"),
    (str, "a text"),
    (Mapping, "a table"),
    ((list, tuple), "a list"),
    ((datetime.date, datetime.time), "a date or time"),
)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    return next((word for kind, word in _KINDS if isinstance(value, kind)), "nothing")
