"""`fmstune runs plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fmstune.cli.completion import complete_run
from fmstune.cli.printing import print_json, print_lines, terminal_width, warn_unread
from fmstune.cli.trackers import Debug, Json

_WIDTH = 80


def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(help="The runs' directories.", metavar="RUN...", autocompletion=complete_run),
    ],
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="Such as `loss`, `train/loss` or `eval/*`; may be given several times. Default: loss.",
            metavar="NAME",
        ),
    ] = None,
    x: Annotated[
        Literal["step", "time", "tokens"],
        typer.Option("--x", help="The x-axis: steps, seconds, or tokens seen."),
    ] = "step",
    smooth: Annotated[
        float,
        typer.Option(
            help="Smooth the values as TensorBoard does: 0 (off) to 1.", metavar="S", min=0, max=0.999
        ),
    ] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Save a picture: .png, .svg or .pdf.", metavar="FILE"),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Plot metrics of runs, in the terminal or as a picture.

    Draws a chart for each metric, with a line for each run. Pictures (--output) need matplotlib, from the
    extra `plot`.
    """
    from fmstune.report.charts import charts
    from fmstune.report.curves import read_run
    from fmstune.report.text_chart import text_chart

    tracked = [read_run(run) for run in dict.fromkeys(runs)]
    for each in tracked:
        warn_unread(each.directory, each.replay)
    found = charts(tracked, metrics or ["loss"], x=x, smoothing=smooth)
    if output is not None:
        from fmstune.report.picture import save_picture

        save_picture(found, output)
    if as_json:
        print_json([chart.to_json() for chart in found])
    elif output is None:
        width = terminal_width() or _WIDTH
        for number, chart in enumerate(found):
            print_lines([*[""] * (number > 0), *text_chart(chart, width)])
