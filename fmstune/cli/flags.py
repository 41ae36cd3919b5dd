"""The flags of `fmstune train` that are settings, for the other commands that take them too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from fmstune.cli.train import FLAGS, train
from fmstune.config.sources import Flag
from fmstune.config.values import toml_value

_BESIDES = ("param", "params_file")
"""Options of `train` that are no flags of one setting each, but belong to a configuration as well."""


_NUMBERS = ("--epochs", "--max-steps", "--learning-rate", "--batch-size", "--seed")
"""Texts to Typer, so that a wrong number is told as everywhere else, with its value and its setting."""


def given_flags(values: Mapping[str, Any]) -> list[Flag]:
    """The settings among a command's arguments, by the names of its parameters; those that were given."""
    found = []
    for flag, key in FLAGS.items():
        value: Any = values.get(_parameter(flag))
        if isinstance(value, (list, tuple)):
            value = tuple(value) or None
        elif flag in _NUMBERS and value is not None:
            value = toml_value(value)
        elif flag == "--rehearse" and value is not None:
            value = "always" if value else "never"
        if value is not None:
            found.append((key, value, flag))
    return found


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the flags of `fmstune train`, which reach it as `**flags`."""
    parameters, hints = inspect.signature(train).parameters, get_type_hints(train, include_extras=True)
    added = [
        parameters[name].replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name in (*map(_parameter, FLAGS), *_BESIDES)
    ]
    own, own_hints = inspect.signature(command).parameters, get_type_hints(command, include_extras=True)
    kept = [
        each.replace(annotation=own_hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in own.items()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]

    @functools.wraps(command)
    def taking(**arguments: Any) -> None:
        command(**arguments)

    # What Typer reads: the parameters and, for its own reasons, the annotations besides.
    taking.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    taking.__annotations__ = {each.name: each.annotation for each in (*kept, *added)}
    return taking


def _parameter(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")
