"""Runs of an Aim repository on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmstune.trackers.continued import MARK
from fmstune.trackers.imports.past import NotASource, PastRun, namespaces
from fmstune.trackers.records import MetricPoint, Status

_OWN = ("status", "error", MARK)
_STATUSES: tuple[Status, ...] = ("finished", "failed", "interrupted")


def find(source: Path) -> Path | None:
    """The folder of the repository at a path."""
    for folder in (source, source.parent if source.name == ".aim" else source):
        if (folder / ".aim").is_dir():
            return folder
    return None


def read(folder: Path) -> Iterator[PastRun]:
    """Yield all runs of a repository. Raises `NotASource` if Aim is missing or cannot open it."""
    try:
        from aim import Repo
    except ImportError:
        raise NotASource("an Aim repository needs Aim: pip install aim.") from None
    try:
        runs = list(Repo.from_path(str(folder)).iter_runs())
    except Exception as error:  # Aim raises many types
        raise NotASource(f"{folder} cannot be read by Aim: {type(error).__name__}: {error}") from error
    for run in runs:
        yield _past(run)


def _past(run: Any) -> PastRun:
    params: dict[str, Any] = run[...]
    points: list[MetricPoint] = []
    lost: list[str] = []
    for metric in run.metrics():
        context = metric.context.to_dict()
        stage = context.get("subset")
        if more := {key: value for key, value in context.items() if key != "subset"}:
            lost.append(f"the context {more} of {metric.name} is not kept")
        try:
            metric.preload()  # as its `dataframe` does, which would need pandas
            steps, (values, epochs, times) = metric.data.items_list()
        except Exception as error:  # a truncated sequence
            lost.append(f"{metric.name} cannot be read: {type(error).__name__}: {error}")
            continue
        for step, epoch, moment, value in zip(steps, epochs, times, values, strict=True):
            at = None if epoch is None or epoch != epoch else float(epoch)
            points.append(MetricPoint({metric.name: float(value)}, stage, int(step), at, float(moment)))
    points.sort(key=lambda point: (point.time or 0.0, point.step or 0))
    status = params.get("status")
    own = {key: value for key, value in params.items() if key not in _OWN and not key.startswith("__")}
    return PastRun(
        "aim",
        run.hash,
        run.name or run.hash,
        float(run.creation_time),
        status if status in _STATUSES else ("finished" if not run.active else "interrupted"),
        tuple(points),
        namespaces(own),
        error=params.get("error") if isinstance(params.get("error"), str) else None,
        group=run.experiment,
        tags=tuple(run.tags),
        notes=run.description or None,
        lost=tuple(lost),
    )
