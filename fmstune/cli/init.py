"""`fmstune init`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fmstune.cli.completion import complete_method, complete_tracker
from fmstune.config.methods.known import in_help
from fmstune.layout import CONFIG_FILE


def init(
    model: Annotated[
        str | None, typer.Option(help="The model: a directory, a hub name, or `demo`.", metavar="M")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="The training data; may be given several times.", metavar="D"),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(help="The evaluation data. Default: a part of the training data.", metavar="D"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"The training method ({in_help()}). Default: the one that fits the data.",
            metavar="NAME",
            autocompletion=complete_method,
        ),
    ] = None,
    lora: Annotated[
        bool | None, typer.Option("--lora/--full", help="Train a LoRA adapter, or all weights.")
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            help="A tracker for the runs; may be given several times.",
            metavar="T",
            autocompletion=complete_tracker,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", metavar="FILE")] = Path(
        CONFIG_FILE
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept all proposals without asking.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write a commented fmstune.toml for a model and data.

    Reads the first rows of the data, and proposes settings that fit them. On a terminal, asks for what the
    flags leave open; elsewhere, takes the proposals.
    """
    from fmstune.access import reason
    from fmstune.cli.terminal import screen
    from fmstune.console import RunConsole
    from fmstune.errors import ConfigError, RunError
    from fmstune.requirements import require_supported
    from fmstune.run.proposal import Proposal, as_toml, found_data, inspect_rows, wants_lora
    from fmstune.run.resolve import check_name
    from fmstune.system.files import replace_text
    from fmstune.text import shown

    require_supported()
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} already exists; use another --output, or --overwrite.")
    asks = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    found = found_data()
    if model is None:
        if not asks and (data or found):
            raise ConfigError(
                f"no model is given for {shown(data[0] if data else found)}; add --model MODEL."
            )
        model = _asked("model (a directory, a hub name, or demo)", "demo", asks)
    if not data:
        proposed = found or ("demo" if model == "demo" else None)
        if proposed is None and not asks:
            raise ConfigError("no training data is given, and none was found here; add --data FILE.")
        data = shlex.split(
            _asked("training data (files, or hub names)", proposed and shlex.quote(proposed), asks)
        )
    out = RunConsole(screen())
    facts = inspect_rows(data, method)
    out.say("data", facts.line())
    lora = wants_lora(model) if lora is None and not asks else lora
    if lora is None:
        lora = typer.confirm("train a LoRA adapter, instead of all weights?", wants_lora(model), err=True)
    if tracker is None:
        named = _asked("trackers (such as aim or wandb; none)", "none", asks)
        tracker = [name for name in named.replace(",", " ").split() if name != "none"]
    for name in tracker:
        check_name(name)
    proposal = Proposal(model, data, eval_data or (), facts.method, lora, tracker, facts)
    text = as_toml(proposal)
    _require_right(text)
    try:
        replace_text(output, text)
    except OSError as error:
        raise RunError(f"{output} cannot be written: {reason(error, output)}.") from error
    given = "" if output == Path(CONFIG_FILE) else f" {output}"
    out.say("next", f"fmstune train{given} --dry-run")
    out.say("", f"fmstune train{given}")
    typer.echo(str(output))


def _asked(what: str, proposed: str | None, asks: bool) -> str:
    if not asks:
        return proposed or ""
    answer: str = typer.prompt(what, proposed, err=True)
    return answer.strip()


def _require_right(text: str) -> None:
    """Raise `ConfigError` for a file that `fmstune train` would refuse."""
    import tempfile

    from fmstune.run.resolve import load_config as load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, CONFIG_FILE)
        path.write_text(text, encoding="utf-8")
        load(path, [], [], [], None, trains=False)
