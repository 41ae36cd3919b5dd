"""`fmstune runs list`, and the group of commands about runs, which read only journals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmstune.cli.panels import MARKUP
from fmstune.cli.printing import print_json, print_lines, terminal_width, visible
from fmstune.cli.run_files import export, report, rm
from fmstune.cli.run_import import import_
from fmstune.cli.run_plot import plot
from fmstune.cli.run_show import compare, show
from fmstune.cli.run_watch import watch
from fmstune.cli.trackers import Debug, Json

if TYPE_CHECKING:
    from fmstune.report.listing import ListedRun

app = typer.Typer(no_args_is_help=True, rich_markup_mode=MARKUP)

_HEAD = (
    "run", "name", "status", "model", "method", "data", "step", "loss", "eval", "duration", "age", "params",
)  # fmt: skip
_NUMBERS = ("step", "loss", "eval", "duration", "age")
_OPTIONAL = ("method", "data", "age", "duration", "model", "params", "name", "step")
"""Columns to drop, in this order, if the terminal is too narrow."""


@app.command("list")
def list_(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Where to search. Default: runs/, and three levels below the current directory.",
            metavar="[DIR]...",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only runs that match, such as `training.learning_rate>1e-4`, `team=nlp` or "
            "`eval/loss<2`; may be given several times.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="Sort by a column, setting, param or metric, smallest first. Default: newest first.",
            metavar="KEY",
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order.")] = False,
    limit: Annotated[
        int | None, typer.Option(help="The maximum number of runs to show.", metavar="N", min=1)
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List runs, with their status and results.

    A run that has no end and whose process is gone is `killed`. Columns that do not fit the terminal are left
    out.
    """
    from fmstune.access import denied
    from fmstune.cli.terminal import progress, screen
    from fmstune.report.fields import chosen, condition_key, needs_detail, ordered
    from fmstune.report.listing import list_runs

    keys = [*map(condition_key, where or ()), *([sort] if sort is not None else [])]
    detailed = as_json or any(map(needs_detail, keys))
    with progress(screen()) as moved:
        found, unreadable = list_runs(directories or [], detailed=detailed, moved=moved)
    runs = found
    for condition in where or ():
        runs = chosen(runs, condition, found)
    if sort is not None:
        runs = ordered(runs, sort, reverse=reverse, among=found)
    elif reverse:
        runs = runs[::-1]
    runs = runs[:limit]
    for folder in unreadable:
        typer.echo(visible(f"{folder}: this directory cannot be read: {denied(Path(folder))}"), err=True)
    if as_json:
        print_json([_as_json(run) for run in runs])
    elif runs:
        _print_table(runs)
    elif found or not unreadable:
        typer.echo(_nothing(directories, len(found)), err=True)


def _print_table(runs: list[ListedRun]) -> None:
    import time

    from fmstune.report.table import table
    from fmstune.report.words import age, cell, duration, printable

    now = time.time()
    # Most runs are named after their directories.
    names = ["" if run.line.name == Path(run.path).name else run.line.name for run in runs]
    rows = []
    for run, name in zip(runs, names, strict=True):
        line = run.line
        texts = [run.status, _short(line.model), line.method, line.data, line.step, line.loss, line.eval]
        times = [duration(line.seconds), age(None if line.created is None else now - line.created)]
        named = [printable(run.path), printable(name)]
        rows.append([*named, *map(cell, texts), *times, printable(line.params)])
    head: Sequence[str] = _HEAD
    if not any(names):
        head, rows = (_HEAD[0], *_HEAD[2:]), [[row[0], *row[2:]] for row in rows]
    print_lines(table(head, rows, right=_NUMBERS, width=terminal_width(), optional=_OPTIONAL))


def _as_json(run: ListedRun) -> dict[str, Any]:
    import dataclasses

    line = {name: value for name, value in dataclasses.asdict(run.line).items() if name != "params"}
    return {"run": run.path, **line, "status": run.status, **dataclasses.asdict(run.detail)}


def _short(model: str | None) -> str | None:
    """The last part of a model's name or path; `runs show` has all of it."""
    return model and (model.rstrip("/").rpartition("/")[2] or model)


def _nothing(directories: list[Path] | None, found: int) -> str:
    if found:
        return f"no run matches, of {found:,} here"
    where = ", ".join(map(str, directories)) if directories else "runs/ and below the current directory"
    return f"no runs in {visible(where)}; start one with `fmstune train`"


for _command in (show, watch, compare, plot, report, export):  # in the order of the help, after `list`
    app.command()(_command)
app.command("import")(import_)
app.command()(rm)
