"""Check the arguments of the learning rate schedule, `training.lr_scheduler_kwargs`.

They are read from transformers' source, since importing it takes seconds.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fmstune.config.check.suggest import closest
from fmstune.errors import ConfigError
from fmstune.text import shown, shown_key
from fmstune.transformers_compat import ENUM_FILES, SCHEDULES_FILE, SCHEDULES_TABLE, library_source

_GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
"""The arguments that transformers passes itself."""
_PLAIN = ("linear", "cosine", "constant", "constant_with_warmup")
"""Schedules without required arguments: no need to read the source if none are given."""
_ONE_OF = {
    "cosine_with_min_lr": ("min_lr_rate", "min_lr"),
    "cosine_warmup_with_min_lr": ("min_lr_rate", "min_lr"),
}
"""Schedules that need one of several arguments, the most convenient one first."""
_EXAMPLES = {"min_lr_rate": 0.1, "num_decay_steps": 100}


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments that a schedule takes from the user, and those that it requires."""

    takes: tuple[str, ...]
    needs: tuple[str, ...]


def schedule_problems(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The problems with the schedule's arguments, as (key, message)."""
    key, name = "training.lr_scheduler_kwargs", str(training.get("lr_scheduler_type", "linear"))
    given = training.get("lr_scheduler_kwargs") or {}
    table = _table(given)
    if table is None:
        yield key, f"{key} = {shown(given)} is a string; it takes a table: write {{name = value}}."
        return
    known = _arguments(name) if table or name not in _PLAIN else None
    if known is None:
        return
    for argument in table:
        if argument not in known.takes:
            close = closest(argument, known.takes, {})
            there = f"Available: {', '.join(known.takes)}." if known.takes else "It takes none."
            what = f"Did you mean {close}?" if close else there
            yield key, f"{key}: the schedule {name} has no argument {shown_key(argument)}. {what}"
    one_of = _ONE_OF.get(name, ())
    missing = [argument for argument in known.needs if argument not in table]
    if one_of and not table.keys() & set(one_of):
        missing.append(one_of[0])
    if missing:
        example = ", ".join(f"{argument} = {_EXAMPLES.get(argument, '…')}" for argument in missing)
        kind = "training.lr_scheduler_type"
        yield kind, f"{kind} = {name!r} needs arguments, such as {key} = {{{example}}}."


def _table(given: Any) -> Mapping[str, Any] | None:
    if not isinstance(given, str):
        return given if isinstance(given, Mapping) else None
    try:
        read = json.loads(given)  # as transformers does
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, Mapping) else None


def _arguments(schedule: str) -> Arguments | None:
    """The arguments of a schedule; `None` if they are not known, or if it takes any."""
    try:
        tree = ast.parse(library_source("transformers", SCHEDULES_FILE))
        enum_source = library_source("transformers", ENUM_FILES[0])
    except (ConfigError, SyntaxError):  # an unusual installation: let transformers check them
        return None
    enum = dict(re.findall(r"^    (\w+) = \"([^\"]+)\"", enum_source, re.M))
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == SCHEDULES_TABLE:
            table = node.value if isinstance(node.value, ast.Dict) else ast.Dict([], [])
            for key, value in zip(table.keys, table.values, strict=True):
                if isinstance(key, ast.Attribute) and enum.get(key.attr) == schedule:
                    return _of_function(functions.get(ast.unparse(value)))
    return None


def _of_function(found: ast.arguments | None) -> Arguments | None:
    if found is None or found.kwarg is not None:
        return None
    names = [argument.arg for argument in found.args]
    needed = names[: len(names) - len(found.defaults)]
    return Arguments(
        tuple(name for name in names if name not in _GIVEN),
        tuple(name for name in needed if name not in _GIVEN),
    )
