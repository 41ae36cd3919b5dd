"""Read the fields of TRL's installed configuration classes from source, since importing them takes seconds.

Each method has its own class, given by its record in `fmstune.config.methods`.

So `[training]` always accepts what the installed versions accept, without a table that becomes outdated.
`tests/config` compares the result with the real classes.
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from types import NoneType
from typing import Any

from fmstune.config.check.annotations import options_of
from fmstune.config.methods.known import DEFAULT, METHODS
from fmstune.config.schema.managed import TRAINING_DEFAULTS
from fmstune.transformers_compat import (
    ENUM_FILES,
    TRAINING_ARGUMENTS,
    TRL_BASE_CONFIG,
    class_source,
    library_source,
)


@dataclass(frozen=True, slots=True)
class TrainingField:
    """A field: its annotation as written, its default, its help, and its choices, if it has any."""

    name: str
    annotation: str
    default: Any
    help: str
    choices: tuple[str, ...] | None = None


NONE = "none"
"""No value, where a missing one means the default: TOML has no word for it."""


def has_none(field: TrainingField) -> bool:
    """Whether a field can be set to `NONE`: `training.max_length` then has no limit."""
    default = TRAINING_DEFAULTS.get(field.name, field.default)
    return "None" in options_of(field.annotation) and not isinstance(default, (bool, NoneType))


_BASES = (TRAINING_ARGUMENTS, TRL_BASE_CONFIG)  # the most general first
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_COMPUTED_CHOICES = {
    "log_level": _LOG_LEVELS,
    "log_level_replica": _LOG_LEVELS,
    # torch's own modes; other backends would reject them all.
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
"""Choices that are not literals in the source, or missing from it."""


@functools.cache
def training_fields(method: str = DEFAULT) -> dict[str, TrainingField]:
    """All fields of a method's installed class, by name. Raises `ConfigError` if TRL is not installed."""
    return _common_fields() | _fields_of(METHODS[method].config)


def methods_with(name: str) -> list[str]:
    """The methods that have a field with this name."""
    return [method for method in METHODS if name in training_fields(method)]


@functools.cache
def _common_fields() -> dict[str, TrainingField]:
    return {name: made for base in _BASES for name, made in _fields_of(base).items()}


def _fields_of(place: tuple[str, str, str]) -> dict[str, TrainingField]:
    found: dict[str, TrainingField] = {}
    enums = _enums()
    for node in _class_body(*place):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            made = _field(node, enums)
            if made is not None:
                found[made.name] = made
    return found


def _field(node: ast.AnnAssign, enums: dict[str, tuple[str, ...]]) -> TrainingField | None:
    name = node.target.id if isinstance(node.target, ast.Name) else ""
    annotation = ast.unparse(node.annotation)
    if not name or name.startswith("_") or "ClassVar" in annotation:
        return None
    default: Any = None
    text, choices = "", None
    if isinstance(node.value, ast.Call):
        given = {keyword.arg: keyword.value for keyword in node.value.keywords}
        default = _literal(given.get("default"))
        factory = given.get("default_factory")
        if isinstance(factory, ast.Lambda):
            default = _literal(factory.body)
        metadata = given.get("metadata")
        if isinstance(metadata, ast.Dict):
            for key, value in zip(metadata.keys, metadata.values, strict=True):
                word = _literal(key)
                if word == "help":
                    text = str(_literal(value) or "").replace("%%", "%")  # escaped for argparse
                elif word == "choices":
                    choices = tuple(_literal(value) or ()) or None
    elif node.value is not None:
        default = _literal(node.value)
    if choices is None:
        choices = _choices_in_help(text)
    if name == "loss_type" and annotation == "list[str]":
        annotation = "str | list[str]"  # DPOConfig converts a string to a list
    if name == "fsdp":
        annotation = "bool | str | None"  # annotated as just a string, for argparse
    choices = choices or _COMPUTED_CHOICES.get(name)
    named = set(re.findall(r"\w+", annotation))
    if "list" not in named:
        choices = next((members for enum, members in enums.items() if enum in named), choices)
    return TrainingField(name, annotation, default, text, choices)


def _literal(node: ast.expr | None) -> Any:
    """The value of an expression, or `None` if it must be evaluated, such as the default of `optim`, which
    depends on the version of torch."""
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _choices_in_help(text: str) -> tuple[str, ...] | None:
    """The values listed in a help text, for fields that do not declare choices."""
    listed = re.search(r"Possible values are: (.*?)\.(?: |$)", text)
    names = re.findall(r"`'?(\w+)'?`", listed.group(1)) if listed else []
    return tuple(names) or None


@functools.cache
def _enums() -> dict[str, tuple[str, ...]]:
    """The values of each `ExplicitEnum` that an annotation may refer to."""
    found: dict[str, tuple[str, ...]] = {}
    for file in ENUM_FILES:
        source = library_source("transformers", file)
        for match in re.finditer(r"^class (\w+)\(ExplicitEnum\):\n((?:(?:    .*)?\n)+)", source, re.M):
            values = re.findall(r"^    \w+ = \"([^\"]+)\"", match.group(2), re.M)
            if values:
                found[match.group(1)] = tuple(values)
    return found


def _class_body(package: str, file: str, name: str) -> list[ast.stmt]:
    """The statements of a class that `class_source` returns."""
    head, whole = class_source(package, file, name)
    try:
        tree = ast.parse(head)
    except SyntaxError:  # cut in the wrong place: parse the whole file, which is slower
        tree = ast.parse(whole)
    definitions = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return next(definitions).body
