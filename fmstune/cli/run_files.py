"""`fmstune runs export | rm`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fmstune.cli.completion import complete_run
from fmstune.cli.printing import visible, warn_unread
from fmstune.cli.trackers import Debug

if TYPE_CHECKING:
    from fmstune.report.remove import Removal

_NAMED = 8
"""The number of a run's files to list before it is removed."""


def export(
    run: Annotated[
        Path, typer.Argument(help="The run's directory.", metavar="RUN", autocompletion=complete_run)
    ],
    to: Annotated[
        Literal["csv", "parquet", "json"],
        typer.Option(help="csv and parquet: a row for each value of a metric; json: the whole run."),
    ] = "csv",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file. Default: standard output.", metavar="FILE"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Export a run's tracked data.

    For a step that was logged repeatedly, the newest value is exported.
    """
    from fmstune.errors import ConfigError
    from fmstune.report.export import write_csv, write_json, write_parquet

    if to == "parquet":
        if output is None:
            raise ConfigError("--to parquet needs a file; add --output FILE.")
        with _whole(output) as scratch:
            found = write_parquet(run, scratch)
        warn_unread(run, found)
        return
    write = write_csv if to == "csv" else write_json
    if output is None:
        warn_unread(run, write(run, sys.stdout))
        return
    with _whole(output) as scratch, scratch.open("w", encoding="utf-8", errors="backslashreplace") as file:
        found = write(run, file)
    warn_unread(run, found)


def report(
    run: Annotated[
        Path, typer.Argument(help="The run's directory.", metavar="RUN", autocompletion=complete_run)
    ],
    debug: Debug = False,
) -> None:
    """Write the run's report.html again, and print its path.

    A single file for a browser, which works offline: curves, settings, data, time and memory, delivery.
    """
    from fmstune.access import reason
    from fmstune.errors import RunError
    from fmstune.report.curves import read_run
    from fmstune.report.page import write_report
    from fmstune.text import shown_path

    found = read_run(run)
    warn_unread(run, found.replay)
    try:
        typer.echo(visible(str(write_report(run, found))))
    except OSError as error:
        raise RunError(f"the report of {shown_path(run)} cannot be written: {reason(error, run)}.") from error


def rm(
    runs: Annotated[
        list[Path],
        typer.Argument(help="The runs' directories.", metavar="RUN...", autocompletion=complete_run),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: Debug = False,
) -> None:
    """Remove runs, after listing what would be deleted and asking.

    Deletes the journal, checkpoints, model and configuration; `tracking` and checkpoints with everything in
    them. Other files in the directories stay, as does the data in trackers. A running run is never removed.
    """
    from fmstune.errors import ConfigError
    from fmstune.report.remove import planned, remove

    plans = [planned(run) for run in dict.fromkeys(runs)]
    for plan in plans:
        for line in _lines(plan):
            typer.echo(visible(line), err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nothing was deleted: confirmation needs a terminal. To delete it, add --yes.")
        if not typer.confirm("Delete this?", err=True):
            typer.echo("nothing was deleted", err=True)
            return
    for plan in plans:
        remove(plan)
        empty = ", except its directory, which is empty" if plan.directory.exists() else ""
        kept = ", except files that are not the run's" if plan.others else empty
        typer.echo(visible(f"deleted  {plan.directory}{kept}"), err=True)


def _lines(plan: Removal) -> Iterator[str]:
    from fmstune.text import counted

    names = [entry.name + "/" * (entry.is_dir() and not entry.is_symlink()) for entry in plan.entries]
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    yield f"delete   {plan.directory} · {plan.bytes / 1e6:.1f} MB: {', '.join(names[:_NAMED] + more)}"
    if plan.others:
        others = [other.name for other in plan.others]
        more = [f"{len(others) - _NAMED} more"] if len(others) > _NAMED else []
        yield f"keep     {counted(len(others), 'other')} there: {', '.join(others[:_NAMED] + more)}"
    if plan.undelivered:
        missing = ", ".join(plan.undelivered)
        yield f"lose     what trackers lack ({missing}); `fmstune trackers sync {plan.directory}` delivers it"


@contextlib.contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """Where to write the file, which is replaced once complete. Raises `RunError` if it cannot be written."""
    from fmstune.access import reason
    from fmstune.errors import RunError
    from fmstune.system.files import whole_file
    from fmstune.text import shown_path

    scratch = output
    try:
        with whole_file(output) as scratch:
            yield scratch
    except OSError as error:
        named = Path(error.filename or output)
        if named not in (scratch, output) or isinstance(error, BrokenPipeError):
            raise  # the run cannot be read, or nobody reads /dev/stdout
        raise RunError(f"{shown_path(output)} cannot be written: {reason(error, output)}.") from error
