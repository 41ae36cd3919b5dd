"""The command `fmstune` and the commands below it."""

from __future__ import annotations

from typing import Annotated

import typer

from fmstune.cli import config, runs, trackers
from fmstune.cli.data import data
from fmstune.cli.env import env
from fmstune.cli.generate import generate
from fmstune.cli.init import init
from fmstune.cli.merge import merge
from fmstune.cli.panels import MARKUP
from fmstune.cli.train import train

_EXAMPLE = "Example: fmstune train --model runs/a --data chats.jsonl --lora --tracker aim"

app = typer.Typer(
    name="fmstune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    epilog="Example, in an empty directory: fmstune train --tracker aim",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The sentences of the list of commands, which cuts longer ones at 80 columns.
app.command(short_help="Tune a model on data.", epilog=_EXAMPLE)(train)
app.command(short_help="Write a commented fmstune.toml for a model and data.")(init)
app.command(short_help="Show the data as the model will see them.")(data)
app.command(short_help="Let a model answer.")(generate)
app.command(short_help="Merge an adapter into its base model.")(merge)
app.command(short_help="Print versions, devices and trackers, for a bug report.")(env)
app.add_typer(runs.app, name="runs")
app.add_typer(trackers.app, name="trackers")
app.add_typer(config.app, name="config")


def _show_version(asked: bool) -> None:
    if asked:
        from fmstune._version import __version__

        print(f"fmstune {__version__}")
        raise typer.Exit


@app.callback()
def fmstune(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Tune language models, and track every run with any tracker, several, or none."""
