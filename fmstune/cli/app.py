"""The command `fmstune` and its subcommands.

Typer reads the options of all commands before it runs one, which takes longer than its own import. So only
the command named on the command line is built in full; the others are built as placeholders for the list of
commands.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmstune.cli.panels import MARKUP

if TYPE_CHECKING:
    app: typer.Typer
    """The complete application, built on first access."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its `summary` in the list of commands (cut at 80 columns), and the `module` that defines it,
    as a function of its name or, for a `group`, as `app`."""

    module: str
    summary: str
    group: bool = False
    epilog: str | None = None


COMMANDS: Mapping[str, Command] = {
    "train": Command(
        "fmstune.cli.train",
        "Tune a model on data.",
        epilog="Example: fmstune train --model runs/a --data chats.jsonl --lora --tracker aim",
    ),
    "init": Command("fmstune.cli.init", "Write a commented fmstune.toml for a model and data."),
    "data": Command("fmstune.cli.data", "Show the data as the model will see it."),
    "generate": Command("fmstune.cli.generate", "Generate a model's answers to prompts."),
    "evaluate": Command("fmstune.cli.evaluate", "Evaluate a model on data."),
    "merge": Command("fmstune.cli.merge", "Merge an adapter into its base model."),
    "env": Command("fmstune.cli.env", "Print versions, devices and trackers, for a bug report."),
    "runs": Command("fmstune.cli.runs", "List, watch, compare, plot, export and remove runs.", group=True),
    "trackers": Command(
        "fmstune.cli.trackers", "List and check trackers, and deliver runs to them.", group=True
    ),
    "config": Command(
        "fmstune.cli.config", "Explain a configuration, or compare those of two runs.", group=True
    ),
}
_LISTED = ({"-h"}, {"--help"}, {"--version"})
_COMPLETING = "_FMSTUNE_COMPLETE"
"""Set by a shell that requests completions, of any command."""


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """The part of the application that a command line needs."""
    if _COMPLETING not in os.environ:
        if arguments and arguments[0] in COMMANDS:
            return _built({arguments[0]})
        if set(arguments) in _LISTED:
            return _built(set())
    return _built(set(COMMANDS))


def _built(whole: set[str]) -> typer.Typer:
    made = typer.Typer(
        name="fmstune",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=MARKUP,
        epilog="Example, in an empty directory: fmstune train --tracker aim",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(fmstune)
    for name, command in COMMANDS.items():
        if name not in whole:
            made.command(name, short_help=command.summary)(_placeholder)
            continue
        module = importlib.import_module(command.module)
        if command.group:
            made.add_typer(module.app, name=name, help=command.summary)
        else:
            made.command(name, short_help=command.summary, epilog=command.epilog)(getattr(module, name))
    return made


def _placeholder() -> None:
    raise AssertionError("this command was built only for the list of commands")


def _show_version(asked: bool) -> None:
    if asked:
        from fmstune._version import __version__

        print(f"fmstune {__version__}")
        raise typer.Exit


def fmstune(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Fine-tune language models, and track every run with one tracker, several, or none."""


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    return globals().setdefault("app", _built(set(COMMANDS)))
