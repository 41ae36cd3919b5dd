"""`fmstune runs show | compare`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmstune.cli.completion import complete_run
from fmstune.cli.printing import print_json, print_lines, terminal_width, warn_unread
from fmstune.cli.trackers import Debug, Json
from fmstune.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fmstune.report.compare import Comparison, Row
    from fmstune.report.show import RunView

_LABEL = 10
_METRICS = ("metric", "points", "first", "lowest", "highest", "last", "at step")


def show(
    run: Annotated[
        Path, typer.Argument(help="The run's directory.", metavar="RUN", autocompletion=complete_run)
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a run: how it ended, its settings, and its metrics."""
    from fmstune.report.show import view

    found = view(run)
    if as_json:
        print_json(found.to_json())
        return
    print_lines([*_head(found), *_metrics(found)])


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="The runs' directories.", metavar="RUN RUN...", autocompletion=complete_run),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs: first the settings that differ.

    Then the last value of each metric, and the resources that the runs used.
    """
    from fmstune.report.compare import compared

    if len(runs) < 2:
        raise typer.BadParameter("a comparison needs at least two runs; `fmstune runs show` shows one.")
    found = compared(runs)
    for each in found.runs:
        warn_unread(each.directory, each.detail)
    if as_json:
        print_json(found.to_json())
        return
    print_lines(_compared(found))


def _head(run: RunView) -> Iterator[str]:
    from fmstune.report.show import changed_settings, further_params
    from fmstune.report.summary import unread
    from fmstune.report.words import age, cell, duration, moment, printable

    line, detail = run.line, run.detail
    created = 0.0 if line.created is None else line.created
    when = f"{moment(created)} ({age(time.time() - created)} ago)"
    settings = {key: value for key, value in changed_settings(detail.settings).items() if key not in _IN_HEAD}
    texts = [f"{key}={cell(value)}" for key, value in settings.items()]
    params = [line.params, *(f"{key}={cell(value)}" for key, value in further_params(detail).items())]
    tables = [f"{each['name']} ({counted(len(each['rows']), 'row')})" for each in run.tables]
    resumed = [f"from step {each.resumed_from}" for each in run.sessions[1:]]
    labelled: list[tuple[str, str | None]] = [
        ("run", printable(str(run.directory))),
        ("status", f"{run.status} · step {cell(line.step)} · {duration(line.seconds)} · {when}"),
        ("error", line.error),
        ("resumed", ", ".join(resumed)),
        ("model", line.model),
        ("method", line.method),
        ("data", line.data),
        ("params", " ".join(filter(None, params))),
        ("settings", " ".join(texts)),
        ("tables", ", ".join(tables)),
        ("media", ", ".join(_media(run))),
        ("journal", " · ".join([counted(detail.events, "event"), *unread(detail)])),
    ]
    for each in run.delivery:
        labelled.append((each.tracker, each.line()))
        labelled += [("", change) for change in each.adapted()]
    width = max(_LABEL, 2 + max(len(printable(each.tracker)) for each in run.delivery) if run.delivery else 0)
    for label, text in labelled:
        if text:
            yield f"{printable(label):<{width}}{printable(text)}"


def _media(run: RunView) -> Iterator[str]:
    """The number of texts, images, histograms and artifacts of each name."""
    counts = Counter(
        (each["kind"], "/".join(filter(None, (each["stage"], each["name"])))) for each in run.media
    )
    for (kind, name), count in counts.items():
        yield f"{kind} {name}" + (f" ({count})" if count > 1 else "")


_IN_HEAD = ("model.path", "run.method", "data.train")


def _metrics(run: RunView) -> list[str]:
    from fmstune.report.table import table
    from fmstune.report.words import cell, printable

    rows = []
    for each in run.figures:
        texts = [each.first, each.lowest, each.highest, each.last, each.last_step]
        points = str(each.points) + (f" ({each.not_finite} not finite)" if each.not_finite else "")
        rows.append([printable(each.key), points, *map(cell, texts)])
    lines = table(_METRICS, rows, right=_METRICS[1:], width=terminal_width()) if rows else []
    return ["", *lines] if lines else []


def _compared(found: Comparison) -> list[str]:
    from fmstune.report.table import table
    from fmstune.report.words import cell, duration, printable

    runs = found.runs
    head = ["", *(printable(str(run.directory)) for run in runs)]
    rows: list[list[str]] = [
        ["status", *(run.status for run in runs)],
        ["step", *(cell(run.line.step) for run in runs)],
        ["duration", *(duration(run.line.seconds) for run in runs)],
    ]
    settings = [[printable(row.key), *map(_setting, row.values)] for row in found.settings]
    sections = [settings or [["no setting differs", *("" for _ in runs)]], rows]
    sections += [_last(found.metrics), _last(found.resources)]
    lines = table(head, [row for section in sections for row in section], width=terminal_width())
    parted, at = [lines[0]], 1
    for section in filter(None, sections):
        parted += ["", *lines[at : at + len(section)]]
        at += len(section)
    return parted


def _last(rows: Sequence[Row]) -> list[list[str]]:
    from fmstune.report.words import cell, printable

    return [
        [printable(row.key), *(cell(None if each is None else each.last) for each in row.values)]
        for row in rows
    ]


def _setting(value: Any) -> str:
    from fmstune.report.words import MISSING, cell

    # Settings are shown exactly as the user wrote them: 5e-05 and 5.0001e-05 differ.
    return MISSING if value is None else repr(value) if isinstance(value, float) else cell(value)
