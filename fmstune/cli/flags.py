"""The flags of `fmstune train` that are settings, shared with the other commands that take them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from fmstune.config.load.layers import Flag

FLAGS = {
    "--model": "model.path",
    "--data": "data.train",
    "--method": "run.method",
    "--eval-data": "data.eval",
    "--template": "data.template",
    "--skip-bad-rows": "data.skip_bad_rows",
    "--strict-chat": "data.strict_chat",
    "--output-dir": "training.output_dir",
    "--tracker": "tracking.trackers",
    "--name": "run.name",
    "--tag": "run.tags",
    "--strict-tracking": "tracking.strict",
    "--lora": "lora.enabled",
    "--epochs": "training.num_train_epochs",
    "--max-steps": "training.max_steps",
    "--learning-rate": "training.learning_rate",
    "--batch-size": "training.per_device_train_batch_size",
    "--seed": "training.seed",
    "--auto-batch": "run.auto_batch",
    "--rehearse": "run.rehearse",
}
"""Flags, and the settings that they set."""

_FURTHER = ("param", "params_file")
"""Options of `train` that belong to a configuration, but do not map to one setting each."""


_NUMBERS = ("--epochs", "--max-steps", "--learning-rate", "--batch-size", "--seed")
"""Strings to Typer, so that a wrong number is reported as it is elsewhere, with its value and its setting."""


def given_flags(values: Mapping[str, Any]) -> list[Flag]:
    """The settings that were given among a command's arguments, which are keyed by parameter name."""
    from fmstune.config.load.values import toml_value  # `fmstune --help` does not need the configuration

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


def with_flags_of(train: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the flags of `fmstune train` to a command, which gets them as
    `**flags`."""
    return functools.partial(_with_flags_of, train)


def _with_flags_of(train: Callable[..., None], command: Callable[..., None]) -> Callable[..., None]:
    parameters, hints = inspect.signature(train).parameters, get_type_hints(train, include_extras=True)
    added = [
        parameters[name].replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name in (*map(_parameter, FLAGS), *_FURTHER)
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

    # Typer reads both the signature and the annotations.
    taking.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    taking.__annotations__ = {each.name: each.annotation for each in (*kept, *added)}
    return taking


def _parameter(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")
