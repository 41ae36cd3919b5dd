"""Messages about a wrong command line, with the command, flag or argument that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

_COMMANDS = {
    **dict.fromkeys(("sft", "lora", "finetune", "fine-tune", "tune", "fit", "pt", "run"), "train"),
    **{name: f"train --method {name}" for name in ("dpo", "kto", "reward", "orpo")},
    **dict.fromkeys(("eval", "test"), "evaluate"),
    **dict.fromkeys(("preprocess", "validate"), "data"),
    **dict.fromkeys(("inference", "infer", "chat", "predict", "sample"), "generate"),
    **dict.fromkeys(("merge-lora", "export", "fuse"), "merge"),
}
"""Names of commands in other tools."""
_SUBCOMMANDS = {
    **dict.fromkeys(("ls",), "list"),
    **dict.fromkeys(("delete", "remove"), "rm"),
    **dict.fromkeys(("tail", "follow", "logs"), "watch"),
    **dict.fromkeys(("diff",), "compare"),
    **dict.fromkeys(("test",), "check"),
}
"""Names of the commands of a group in other tools."""
_A_MODEL = ("m", "model", "model_path", "run", "run_dir", "checkpoint", "adapter", "adapter_path")
_ARGUMENTS = {
    "config": ("c", "config", "config_file"),
    "sources": ("d", "data", "dataset", "dataset_name", "train_data"),
    **dict.fromkeys(("run", "runs", "model"), _A_MODEL),
    "out": ("o", "output", "out", "output_dir", "save_path", "export_dir"),
    "names": ("tracker",),
}
"""Arguments of commands, by their parameters, and the options that they are elsewhere."""
_OPTIONS = {
    "o": ("output_dir", "output"),
    "m": ("metric",),
    "format": ("to",),
    "max_tokens": ("max_new_tokens",),
}
"""Options of other names."""
_CLOSE = 0.8


def message(error: Any) -> str:
    """The message about a wrong command line, for one of Typer's errors. For an unknown flag, it suggests the
    flag or setting that other tools call so: Typer compares only the letters, and suggests `--lora` for
    `--lr`."""
    if said := re.match(r"No such command '([\w-]+)'", str(error.message)):
        meant = _command(said[1].lower().replace("_", "-"), error.ctx)
        return f"no such command: {said[1]}. Did you mean {meant}?" if meant else str(error.format_message())
    if said := re.match(r"Got unexpected extra argument\S* \((\S+?)[ )]", str(error.message)):
        return _extra(said[1], error.ctx)
    option = getattr(error, "option_name", None)
    if option is None or not str(error.message).startswith("No such option"):
        return str(error.format_message()).rstrip(".")
    advised = _about_option(option.lstrip("-").replace("-", "_"), error.ctx)
    return f"no such option: {option}{f'. {advised}' if advised else ''}"


def _command(name: str, context: Any) -> str | None:
    if context is None or context.parent is None:
        return _COMMANDS.get(name)
    meant = _SUBCOMMANDS.get(name)
    return meant if meant in context.command.commands else None


def _extra(argument: str, context: Any) -> str:
    said = f"unexpected argument: {argument}"
    options = _options(context)
    if "=" in argument and "--set" in options:
        return f"{said}. Settings are given as --set {argument}"
    arguments = [each for each in context.command.params if each.param_type_name == "argument"]
    if not arguments and "--data" in options:
        return f"{said}. Did you mean --data {argument}?"
    return said


def _about_option(name: str, context: Any) -> str | None:
    """What to use instead of an unknown option: a sentence without its full stop, or a question."""
    from fmstune.cli.flags import FLAGS
    from fmstune.config.check.suggest import closest
    from fmstune.config.load.foreign import advice
    from fmstune.config.load.load import known_keys

    known = _options(context)
    for each in context.command.params if context else ():
        if each.param_type_name == "argument" and name in _ARGUMENTS.get(each.name, ()):
            return f"It is an argument: {context.command_path} {each.metavar.strip('[].')}"
    for own in _OPTIONS.get(name, ()):
        if (flag := f"--{own.replace('_', '-')}") in known:
            return f"Did you mean {flag}?"
    if advised := advice(name, known_keys()):
        return advised.rstrip(".")
    key = closest(name, [*FLAGS.values(), *known_keys()])
    flag = next((flag for flag, of in FLAGS.items() if of == key), None) or "--set"
    if key and flag in known:
        return f"Did you mean {flag if flag != '--set' else f'--set {key}=VALUE'}?"
    alike = difflib.get_close_matches(f"--{name.replace('_', '-')}", known, n=1, cutoff=_CLOSE)
    return f"Did you mean {alike[0]}?" if alike else None


def _options(context: Any) -> list[str]:
    """The flags of a command."""
    params: Iterable[Any] = context.command.params if context else ()
    return [flag for each in params if each.param_type_name == "option" for flag in each.opts]
