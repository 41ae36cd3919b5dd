"""`fmstune trackers list | check | show | new | sync`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmstune.cli.completion import complete_run, complete_setting, complete_tracker
from fmstune.cli.panels import MARKUP
from fmstune.cli.tracker_new import new

if TYPE_CHECKING:
    from fmstune.delivery.report import DeliveryReport
    from fmstune.trackers.records import Check

app = typer.Typer(no_args_is_help=True, rich_markup_mode=MARKUP)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="A TOML configuration instead of fmstune.toml.", metavar="CONFIG.toml"),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="An option, such as trackers.aim.repo=PATH.",
        metavar="KEY=VALUE",
        autocompletion=complete_setting,
    ),
]


@app.command("list")
def list_(as_json: Json = False, debug: Debug = False) -> None:
    """List all available trackers, and whether each is ready."""
    from fmstune.cli.tracker_table import print_trackers

    print_trackers(as_json=as_json)


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Trackers. Default: all that are configured here.",
            metavar="[NAME]...",
            autocompletion=complete_tracker,
        ),
    ] = None,
    as_json: Json = False,
    timeout: Annotated[
        float,
        typer.Option(help="The timeout of each tracker's check, in seconds.", metavar="S", min=0.1),
    ] = 10.0,
    config: Config = None,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Check whether trackers can track runs.

    Checks installation, options, credentials and reachability. Never prompts, and changes nothing. Exits with
    code 3 if a tracker cannot be used.
    """
    from fmstune.run.resolve import check_name, tracker_options

    options = tracker_options(config, sets or [])
    chosen = list(dict.fromkeys(names or options.configured))
    if not chosen:
        typer.echo("no tracker is configured here; name one: fmstune trackers check NAME", err=True)
    for name in chosen:
        check_name(name)
    found = _checked({name: options.of(name) for name in chosen}, timeout)
    if as_json:
        _print_json([{"tracker": name, **dataclasses.asdict(found[name])} for name in chosen])
    else:
        for name in chosen:
            _print_check(name, found[name])
    if not all(result.ok for result in found.values()):
        raise typer.Exit(3)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A tracker.", metavar="NAME")],
    as_json: Json = False,
    timeout: Annotated[
        float,
        typer.Option(help="The timeout of its import, and of its check, in seconds.", metavar="S", min=0.1),
    ] = 10.0,
    config: Config = None,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Show a tracker's options and guarantees.

    Includes what it stores, how events are delivered to it, and whether it can track a run now. Changes
    nothing.
    """
    from fmstune.cli.tracker_show import as_json as described_as_json
    from fmstune.cli.tracker_show import lines, present
    from fmstune.run.resolve import check_name, tracker_options
    from fmstune.secrets.redaction import hide
    from fmstune.trackers.described import described, described_apart
    from fmstune.trackers.registry import is_own, reference, tracker_class

    check_name(name)
    options = tracker_options(config, sets or [])
    if is_own(name):
        about = described(name, tracker_class(name))
    else:
        about = described_apart(name, reference(name), timeout)
    now = present(about, options.of(name), options.given(name))
    found = _checked({name: options.of(name)}, timeout)[name]
    if as_json:
        _print_json(described_as_json(about, now, found))
        return
    for line in lines(about, now):
        typer.echo(hide(line))
    _print_check("check   ", found)


@app.command()
def sync(
    runs: Annotated[
        list[Path], typer.Argument(help="Directories of runs.", metavar="RUN...", autocompletion=complete_run)
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="Deliver the whole run to this tracker; may be given several times.", metavar="NAME"
        ),
    ] = None,
    as_json: Json = False,
    timeout: Annotated[
        float,
        typer.Option(help="The timeout of each tracker's check, in seconds.", metavar="S", min=0.1),
    ] = 10.0,
    config: Config = None,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Deliver the events that trackers have missed.

    With --to, delivers whole runs to another tracker. Nothing is delivered twice, unless the tracker's
    storage has lost it since. Exits with code 1 if something is still missing.
    """
    from fmstune.cli.terminal import progress, screen
    from fmstune.delivery.sync import sync as deliver
    from fmstune.run.resolve import check_name, tracker_options
    from fmstune.secrets.redaction import hide
    from fmstune.trackers.registry import reference

    for wanted in to or ():
        check_name(wanted)
    options = tracker_options(config, sets or [])
    lines: list[tuple[Path, DeliveryReport]] = []
    with progress(screen()) as moved:
        for run in runs:
            name_run = functools.partial(_of_run, moved, run)
            for name in to or (None,):
                reports = deliver(
                    run, name, options.tables, reference, check_within=timeout, progress=name_run
                )
                lines += [(run, line) for line in reports]
    if as_json:
        _print_json([{"run": str(run), **dataclasses.asdict(line)} for run, line in lines])
    else:
        for run, line in lines:
            typer.echo(hide(f"{run}  {line.tracker}  {line.line()}"))
            for change in line.adapted():
                typer.echo(hide(f"  {change}"))
        if not lines:
            typer.echo(
                "nothing to deliver: these runs have no tracker; choose one with --to NAME",
                err=True,
            )
    if any(line.state != "complete" for _, line in lines):
        raise typer.Exit(1)


app.command()(new)


def _checked(options: Mapping[str, Mapping[str, Any]], timeout: float) -> dict[str, Check]:
    """Run the checks of these trackers, each with its options."""
    from fmstune.delivery.shippers import Fleet
    from fmstune.delivery.shipping.process import Job
    from fmstune.trackers.registry import reference

    jobs = [Job(name, reference(name), given) for name, given in options.items()]
    fleet = Fleet(jobs, check_within=timeout, close_timeout=0)
    try:
        return dict(fleet.check())
    finally:
        fleet.abandon()


def _of_run(moved: Callable[[str, int, int], None], run: Path, tracker: str, done: int, total: int) -> None:
    moved(f"{run} → {tracker}", done, total)


def _print_check(name: str, result: Check) -> None:
    from fmstune.secrets.redaction import hide

    where = " · ".join(part for part in (result.server, result.account) if part)
    speed = f" · {result.latency * 1000:.0f} ms" if result.latency is not None else ""
    state = result.state.replace("_", " ")
    # Hidden separately: text after "credentials: " would be taken for a secret.
    typer.echo(f"{name}  {state}: " + hide(result.detail + (f" · {where}" if where else "") + speed))
    if result.remedy:
        typer.echo(hide(f"{'':{len(name)}}  → {result.remedy}"))


def _print_json(value: Any) -> None:
    import json

    from fmstune.secrets.redaction import process_redactor

    typer.echo(json.dumps(process_redactor().value(value), indent=2, default=str))
