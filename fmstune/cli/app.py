"""The command `fmstune` and the commands below it."""

from __future__ import annotations

from typing import Annotated

import typer

from fmstune.cli import config, runs, trackers
from fmstune.cli.data import data
from fmstune.cli.env import env
from fmstune.cli.generate import generate
from fmstune.cli.merge import merge
from fmstune.cli.train import train

app = typer.Typer(
    name="fmstune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(data)
app.command()(generate)
app.command()(merge)
app.command()(env)
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
