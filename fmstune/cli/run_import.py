"""`fmstune runs import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmstune.cli.printing import print_json, visible
from fmstune.cli.trackers import Debug, Json


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="An Aim repository, an MLflow store or server, a folder of W&B offline runs, trackio "
            "databases, a trainer_state.json (or its directory), or a folder of TensorBoard event files.",
            metavar="SOURCE",
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", help="Where to create the run directories.", metavar="O")
    ] = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Create run directories from runs that another tool has tracked.

    They can then be listed, compared, and delivered with `fmstune trackers sync RUN --to NAME`. A run that
    was imported before is left unchanged, and events added to its source since are counted. The source is not
    changed.
    """
    from fmstune.report.importing import import_run, runs_at
    from fmstune.secrets.redaction import hide
    from fmstune.text import counted

    found = []
    for past in runs_at(source):
        made = import_run(past, output_dir)
        found.append(made)
        for each in past.lost:
            typer.echo(hide(f"{visible(str(made.directory))}: {each}"), err=True)
        if made.newer:
            where = visible(str(made.directory))
            events = "event that is" if made.newer == 1 else "events that are"
            typer.echo(
                f"{where}: its source has {made.newer} {events} not here: delete it "
                f"(fmstune runs rm {where}) and import again, or import into another folder (--output-dir)",
                err=True,
            )
        if not as_json:
            result = "already exists" if made.before else counted(len(past.points), "point")
            typer.echo(f"{visible(str(made.directory))}  {result}")
    if as_json:
        print_json(
            [
                {
                    "run": str(made.directory), "source": made.past.source, "id": made.past.id,
                    "points": len(made.past.points), "before": made.before, "newer": made.newer,
                    "lost": list(made.past.lost),
                }
                for made in found
            ]
        )  # fmt: skip
    elif not found:
        typer.echo(f"no runs in {source}", err=True)
