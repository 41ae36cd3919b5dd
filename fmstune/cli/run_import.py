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
            help="An Aim repository, an MLflow store or server, a folder of W&B's offline runs, databases of "
            "trackio's, a trainer_state.json (or its directory), or a folder of TensorBoard's event files.",
            metavar="SOURCE",
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", help="Where the directories of the runs are made.", metavar="O")
    ] = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make run directories of runs that something else has tracked.

    They can then be listed, compared, and sent on with `fmstune trackers sync RUN --to NAME`. A run that was
    imported before is left as it is, and what its source has got since is counted. The source is not changed.
    """
    from fmstune.report.importing import bring_in, runs_at
    from fmstune.secrets.redaction import hide
    from fmstune.text import counted

    found = []
    for past in runs_at(source):
        made = bring_in(past, output_dir)
        found.append(made)
        for each in past.lost:
            typer.echo(hide(f"{visible(str(made.directory))}: {each}"), err=True)
        if made.newer:
            where = visible(str(made.directory))
            said = "event that is not" if made.newer == 1 else "events that are not"
            typer.echo(
                f"{where}: its source has {made.newer} {said} here: delete it (fmstune runs rm {where}) "
                "and import again, or import into another folder (--output-dir)",
                err=True,
            )
        if not as_json:
            said = "is there already" if made.before else counted(len(past.points), "point")
            typer.echo(f"{visible(str(made.directory))}  {said}")
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
        typer.echo(f"there is no run in {source}", err=True)
