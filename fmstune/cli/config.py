"""`fmstune config explain | diff`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fmstune.cli.trackers import Config, Debug, Json

app = typer.Typer(
    help="Explain a configuration, and compare those of two runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_RECORDED = ("packages", "git")


@app.command()
def explain(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings or tables; without one, all that is set. And a TOML configuration, as for train.",
            metavar="[KEY]... [CONFIG.toml]",
        ),
    ] = None,
    as_json: Json = False,
    config: Config = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="As for `fmstune train`.", metavar="KEY=VALUE"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Say which value a setting has, where it comes from, what it won over, and what it may be."""
    from fmstune.cli.options import load_config
    from fmstune.config.explain import chosen, explain_all

    files = [key for key in keys or () if key.lower().endswith(".toml")]
    if len(files) + (config is not None) > 1:
        raise typer.BadParameter(f"one configuration can be explained, and {files[-1]} is another one.")
    resolved = load_config(Path(files[0]) if files else config, [], sets or [], [], None)
    names = [key for key in keys or () if key not in files]
    explained = [each for name in names for each in explain_all(resolved, name)]
    found = explained if names else chosen(resolved)
    if as_json:
        _print_json([dataclasses.asdict(each) for each in found])
        return
    for each in found:
        typer.echo("\n".join(each.lines()))
    if not found:
        typer.echo("nothing is set here: all settings have their defaults", err=True)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A run's directory, or a TOML file.", metavar="RUN")],
    second: Annotated[Path, typer.Argument(help="Another one.", metavar="RUN")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what differs between two runs: their settings, and the versions and commits they ran with."""
    from fmstune.config.compare import differences, read_tables
    from fmstune.tuning.directory import CONFIG_NAME

    tables = [{**read_tables(path, CONFIG_NAME), **_recorded(path)} for path in (first, second)]
    found = differences(*tables)
    if as_json:
        _print_json([dataclasses.asdict(each) for each in found])
        return
    for each in found:
        typer.echo(f"{each.key}  {_shown(each.first)} → {_shown(each.second)}")
    if not found:
        typer.echo("no difference", err=True)


def _recorded(run: Path) -> Mapping[str, Any]:
    """The versions and the commit that a run has recorded in its journal."""
    from fmstune.delivery.journal import FILE_NAME, JournalReader
    from fmstune.delivery.ledger import TRACKING_DIR

    journal = run / TRACKING_DIR / FILE_NAME
    if not run.is_dir() or not journal.exists():
        return {}
    events = JournalReader(journal)
    return {
        event.name: event.values for event in events if event.kind == "params" and event.name in _RECORDED
    }


def _shown(value: Any) -> str:
    import json

    return "not set" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, default=str))
