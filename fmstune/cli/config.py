"""`fmstune config explain | diff`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmstune.cli.completion import complete_key, complete_run, complete_setting
from fmstune.cli.flags import given_flags, with_flags_of
from fmstune.cli.panels import MARKUP
from fmstune.cli.trackers import Config, Debug, Json
from fmstune.cli.train import train

if TYPE_CHECKING:
    from fmstune.config.inspect.explain import Explanation
    from fmstune.config.schema.tables import RunConfig

app = typer.Typer(no_args_is_help=True, rich_markup_mode=MARKUP)

_RECORDED = ("packages", "git")

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="As for `fmstune train`.", metavar="KEY=VALUE", autocompletion=complete_setting
    ),
]


@app.command()
@with_flags_of(train)
def explain(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings or tables (default: all that are set), and a TOML configuration, as for train.",
            metavar="[KEY]... [CONFIG.toml]",
            autocompletion=complete_key,
        ),
    ] = None,
    as_json: Json = False,
    config: Config = None,
    sets: Sets = None,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Show the values of settings and where they come from.

    Also shows which values they override, and what they accept. With the flags of `fmstune train`, shows what
    that would run with.
    """
    from fmstune.config.inspect.explain import chosen, explain_all

    files = [key for key in keys or () if key.lower().endswith(".toml")]
    if len(files) + (config is not None) > 1:
        raise typer.BadParameter(f"only one configuration can be explained; {files[-1]} is a second one.")
    resolved = _resolved(Path(files[0]) if files else config, sets, flags)
    names = [key for key in keys or () if key not in files]
    explained = [each for name in names for each in explain_all(resolved, name)]
    found = [_visible(each) for each in (explained if names else chosen(resolved))]
    typer.echo(f"for      {_subject(resolved)}", err=True)
    if as_json:
        _print_json([dataclasses.asdict(each) for each in found])
        return
    for each in found:
        typer.echo("\n".join(each.lines()))
    if not found:
        typer.echo("nothing is set: all settings have their defaults", err=True)


@app.command()
@with_flags_of(train)
def diff(
    first: Annotated[
        Path,
        typer.Argument(help="A run's directory, or a TOML file.", metavar="RUN", autocompletion=complete_run),
    ],
    second: Annotated[
        Path | None,
        typer.Argument(
            help="Another one. Default, and with flags: what `fmstune train` would run.",
            metavar="[RUN]",
            autocompletion=complete_run,
        ),
    ] = None,
    as_json: Json = False,
    sets: Sets = None,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Show the differences between two runs.

    Compares their settings, and the versions and commits that they ran with. With the flags of `fmstune
    train`, or without a second run, the second is what that would run.
    """
    from fmstune.config.inspect.compare import differences
    from fmstune.layout import CONFIG_FILE
    from fmstune.secrets.redaction import hide

    flagged = bool(sets) or any(value not in (None, [], ()) for value in flags.values())
    if second is None or flagged:
        # A file holds what the user wrote, a run's directory what that resolved to: compare the latter.
        ours = _of_run(first, versions=False) if first.is_dir() else _of_run_to_come(first)[0]
        # With only flags, and no file to define what would run, apply them to the first run's settings.
        base = second or (first if flagged and not Path(CONFIG_FILE).is_file() else None)
        theirs, subject = _of_run_to_come(base, sets, flags)
        found = differences(ours, theirs)
        command = f"{base} with the flags" if base and flagged else str(base or "fmstune train")
        subject = f"{command}: {subject}"
    else:
        found, subject = differences(_of_run(first), _of_run(second)), str(second)
    typer.echo(f"from     {hide(str(first))}\nto       {hide(subject)}", err=True)
    if as_json:
        _print_json([dataclasses.asdict(each) for each in found])
        return
    for each in found:
        typer.echo(f"{each.key}  {_shown(each.first)} → {_shown(each.second)}")
    if not found:
        typer.echo("no differences", err=True)


def _visible(explained: Explanation) -> Explanation:
    """The explanation without secrets that are nested in its values, or recognised by their text."""
    from fmstune.secrets.redaction import process_redactor

    hide = process_redactor()
    return dataclasses.replace(
        explained,
        value=hide.setting(explained.key, explained.value),
        default=hide.setting(explained.key, explained.default),
        over=[(hide.setting(explained.key, value), hide.text(where)) for value, where in explained.over],
    )


def _resolved(config: Path | None, sets: Sequence[str] | None, flags: Mapping[str, Any]) -> RunConfig:
    from fmstune.requirements import require_supported
    from fmstune.run.resolve import load_config

    require_supported()
    params, file = flags.get("param"), flags.get("params_file")
    return load_config(config, given_flags(flags), sets or [], params or [], file, trains=False)


def _of_run(path: Path, *, versions: bool = True) -> Mapping[str, Any]:
    """The configuration in a run's directory or a file, with the versions and the commit that it ran with."""
    from fmstune.config.inspect.compare import read_tables
    from fmstune.layout import CONFIG_NAME

    return {**read_tables(path, CONFIG_NAME), **(_recorded(path) if versions else {})}


def _of_run_to_come(
    path: Path | None, sets: Sequence[str] | None = None, flags: Mapping[str, Any] | None = None
) -> tuple[Mapping[str, Any], str]:
    """The configuration that `fmstune train` would write into its run's directory, and its model and data."""
    from fmstune.config.inspect.compare import config_file
    from fmstune.config.inspect.dump import to_mapping
    from fmstune.layout import CONFIG_NAME
    from fmstune.run.tracking import redactor_of

    config = _resolved(path and config_file(path, CONFIG_NAME), sets, flags or {})
    return redactor_of(config).configuration(to_mapping(config)), _subject(config)


def _subject(config: RunConfig) -> str:
    """The model and data of a configuration, and where they are set."""
    from fmstune.config.schema.data import written_sources
    from fmstune.secrets.redaction import hide

    sources = written_sources(config.data.train)
    data = ", ".join(each if isinstance(each, str) else str(each.get("path")) for each in _each(sources))
    origins = [config.origins.get(key, "default") for key in ("model.path", "data.train")]
    if config.demo and origins == ["default", "default"]:
        return "the demo: no model and data given, and no fmstune.toml here"
    model, where = config.model.path, [f" ({each})" if each != "default" else "" for each in origins]
    return hide(f"model {model}{where[0]} · data {data}{where[1]}")


def _each(sources: Any) -> list[Any]:
    return list(sources) if isinstance(sources, (list, tuple)) else [sources]


def _recorded(run: Path) -> Mapping[str, Any]:
    """The versions and the commit recorded in a run's journal."""
    from fmstune.delivery.journal.reader import JournalReader
    from fmstune.layout import JOURNAL_NAME, TRACKING_DIR

    journal = run / TRACKING_DIR / JOURNAL_NAME
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
