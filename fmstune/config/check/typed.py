"""Check values against types: in the tables, `SFTConfig`'s fields and trackers' options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fmstune.config.check.advice import advice, meant
from fmstune.config.check.annotations import annotation_of, literal_values, options_of, split
from fmstune.config.check.elsewhere import advice_about
from fmstune.config.check.suggest import hint
from fmstune.config.check.words import in_words, kind_of, shown_for
from fmstune.errors import ConfigError
from fmstune.text import listed, shown_key

T = TypeVar("T")


def read_dataclass(cls: type[T], given: Mapping[str, Any], *, where: str, prefix: str) -> T:
    """Build an instance of the dataclass `cls` from a table of the configuration.

    `where` is the location for messages (`fmstune.toml`), `prefix` that of the keys (`lora`). Raises
    `ConfigError` for an unknown or missing key, a wrong type, or a value out of bounds.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values = {}
    for key, value in given.items():
        if key not in fields:
            advice = advice_about(key)
            close = f" {advice}" if advice else hint(key, fields)
            there = "" if close else f" Available: {', '.join(fields) or 'none'}."
            raise ConfigError(f"{where}: there is no setting {prefix}.{shown_key(key)}.{close}{there}")
        values[key] = check_field(value, fields[key], where=where, key=f"{prefix}.{key}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise ConfigError(
                f"{where}: {prefix}.{name} is missing; set it to {in_words(annotation_of(field))}."
            )
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # from the class's own __post_init__
        raise ConfigError(f"{where}: {prefix}: {error}") from error


_KNOWN = frozenset((
    "bool", "int", "float", "None", "NoneType", "Any", "Literal", "dict", "Mapping", "list", "tuple",
    "Sequence", "str", "Path", "pathlib.Path",
))  # fmt: skip
"""The types that `check_value` knows. It takes any other for one whose values are strings."""


def is_checked(field: dataclasses.Field[Any]) -> bool:
    """Whether `check_value` knows all types of a field."""
    return all(option.partition("[")[0] in _KNOWN for option in options_of(annotation_of(field)))


def check_field(value: Any, field: dataclasses.Field[Any], *, where: str, key: str) -> Any:
    """The value, converted to the field's type (a list to a tuple). Raises `ConfigError`."""
    if read := field.metadata.get("read"):  # a setting with its own reader
        return read(value, where=where, key=key)
    choices = field.metadata.get("choices")
    checked = check_value(value, annotation_of(field), where=where, key=key, choices=choices)
    check_bounds(checked, field.metadata, where=where, key=key)
    return checked


def check_bounds(value: Any, bounds: Mapping[str, Any], *, where: str, key: str) -> None:
    """Raise `ConfigError` for a number outside of `min`, `max`, `above` or `below`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    outside = (
        ("min" in bounds and value < bounds["min"])
        or ("max" in bounds and value > bounds["max"])
        or ("above" in bounds and value <= bounds["above"])
        or ("below" in bounds and value >= bounds["below"])
    )
    if outside:
        words = {"min": "at least", "above": "more than", "max": "at most", "below": "below"}
        allowed = " and ".join(f"{words[name]} {bounds[name]}" for name in words if name in bounds)
        raise ConfigError(f"{where}: {key} = {shown_for(key, value)} is out of range; it must be {allowed}.")


def check_value(
    value: Any, annotation: str, *, where: str, key: str, choices: Sequence[str] | None = None
) -> Any:
    """The value, if it has one of the annotation's types. Raises `ConfigError` otherwise.

    A bool is not an int, an int is a float, and numbers must be finite.
    """
    for option in options_of(annotation):
        fits, converted = _fit(value, option)
        if not fits:
            continue
        for item in converted if isinstance(converted, (list, tuple)) else [converted]:
            if choices and isinstance(item, str) and item not in choices:
                rest = f"{listed(choices)}.{meant(item, choices)}"
                raise ConfigError(f"{where}: {key} = {shown_for(key, value)} is not one of {rest}")
        return converted
    what = f"{where}: {key} = {shown_for(key, value)}"
    if _is_number(value) and not _is_finite(value):
        raise ConfigError(f"{what} is not a finite number.")
    for name, item in value.items() if isinstance(value, Mapping) else ():
        if _is_number(item) and not _is_finite(item):
            raise ConfigError(f"{what}: that of {shown_key(name)} is not a finite number.")
    if choices:
        raise ConfigError(
            f"{what} is {kind_of(value)}; it takes one of {listed(choices)}.{meant(value, choices)}"
        )
    wanted = in_words(annotation)
    kind = kind_of(value, inside=kind_of(value) in wanted)
    raise ConfigError(f"{what} is {kind}; it takes {wanted}.{advice(value, annotation, where, key)}")


def _fit(value: Any, option: str) -> tuple[bool, Any]:
    base, _, inside = option.partition("[")
    inner = [part for part in split(inside[:-1], ",") if part not in ("", "...")]
    if base == "bool":
        return isinstance(value, bool), value
    if base == "int":
        return _is_number(value) and isinstance(value, int), value
    if base == "float":
        return _is_number(value) and _is_finite(value), value
    if base in ("None", "NoneType"):
        return value is None, value
    if base == "Any":
        return True, value
    if base == "Literal":
        # Types are compared too: False is not 0 here.
        return any(type(value) is type(one) and value == one for one in literal_values(option)), value
    if base in ("dict", "Mapping"):
        values = inner[1:] or ["Any"]
        return isinstance(value, Mapping) and all(_fits(v, values) for v in value.values()), value
    if base in ("list", "tuple", "Sequence"):
        if not isinstance(value, (list, tuple)):
            return False, value
        converted = tuple(value) if base == "tuple" else list(value)
        return all(_fits(item, inner or ["Any"]) for item in value), converted
    # `str`, an enum's name, a class of TRL's: all of these are strings in a file.
    return isinstance(value, str), value


def _fits(value: Any, annotations: Sequence[str]) -> bool:
    return any(_fit(value, option)[0] for text in annotations for option in options_of(text))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False
