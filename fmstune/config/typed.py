"""Checking values against types: of the tables, of `SFTConfig`'s fields, of trackers' options."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from fmstune.config.errors import ConfigError
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
            raise ConfigError(f"{where}: there is no setting {prefix}.{key}.{close}{there}")
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
            raise ConfigError(f"{where}: {key} = {value!r} is out of range; it is {bounds}.")
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
                raise ConfigError(f"{where}: {key} = {value!r} is not one of {', '.join(choices)}.{close}")
            return converted
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} = {value} is not a finite number.")
    wanted = f"one of {', '.join(choices)}" if choices else _in_words(annotation)
    advice = ""
    if isinstance(value, str) and wanted.startswith(("a number", "a whole number", "true")):
        advice = " Write it without quotes."
    raise ConfigError(f"{where}: {key} = {value!r} is {_kind(value)}; it takes {wanted}.{advice}")


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


def _in_words(annotation: str) -> str:
    options = [option for option in _options(annotation) if option != "None"]
    words = [_WORDS.get(option.partition("[")[0], "a text") for option in options]
    return " or ".join(dict.fromkeys(words))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    for kind, word in ((int, "a whole number"), (float, "a number"), (str, "a text")):
        if isinstance(value, kind):
            return word
    return (
        "a table"
        if isinstance(value, Mapping)
        else "a list"
        if isinstance(value, (list, tuple))
        else "nothing"
    )
