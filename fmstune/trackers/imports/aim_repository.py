"""Runs of an Aim repository on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmstune.text import counted
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
    """Yield all runs of a repository. Raises `NotASource` if Aim is missing or cannot open it, and at the end
    for the runs that it cannot read."""
    try:
        from aim import Repo
    except ImportError:
        raise NotASource("an Aim repository needs Aim: pip install aim.") from None
    try:
        repo = Repo.from_path(str(folder))
        hashes = sorted(repo.list_all_runs())
    except Exception as error:  # Aim raises many types
        raise NotASource(f"{folder} cannot be read by Aim: {type(error).__name__}: {error}") from error
    failed: list[str] = []
    for each in hashes:
        try:
            past = _past(_opened(repo, each))
        except Exception as error:
            failed.append(f"{each}: {type(error).__name__}: {error}")
            continue
        yield past
    if failed:
        count = counted(len(failed), "run")
        raise NotASource(f"{folder}: {count} cannot be read by Aim, the first of them {failed[0]}")


def _opened(repo: Any, run_hash: str) -> Any:
    """A run with its own metadata. Aim's `Run` and `iter_runs` read those in the repository's index, which
    lacks runs, or what was added to them, until Aim's UI runs."""
    from aim import Run

    run = Run(run_hash, repo=repo, read_only=True)
    own = repo.request_tree("meta", run_hash, read_only=True, skip_read_optimization=True).subtree("meta")
    run.meta_tree = run._tracker.meta_tree = own
    run.meta_run_tree = own.subtree("chunks").subtree(run_hash)
    run.meta_attrs_tree, run.meta_run_attrs_tree = own.subtree("attrs"), run.meta_run_tree.subtree("attrs")
    return run


def _past(run: Any) -> PastRun:
    params: dict[str, Any] = run[...]
    points: list[MetricPoint] = []
    lost: list[str] = []
    for metric in run.metrics():
        stage, name = _stage_and_name(metric.name, metric.context.to_dict())
        try:
            metric.preload()  # as its `dataframe` does, which would need pandas
            steps, (values, epochs, times) = metric.data.items_list()
        except Exception as error:  # a truncated sequence
            lost.append(f"{name} cannot be read: {type(error).__name__}: {error}")
            continue
        for step, epoch, moment, value in zip(steps, epochs, times, values, strict=True):
            at = None if epoch is None or epoch != epoch else float(epoch)
            points.append(MetricPoint({name: float(value)}, stage, int(step), at, float(moment)))
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


def _stage_and_name(name: str, context: dict[str, Any]) -> tuple[str | None, str]:
    """The subset is the stage; what else the context has becomes part of the name: `loss[layer=1]`."""
    stage = context.get("subset")
    more = {key: value for key, value in context.items() if key != "subset" or not isinstance(value, str)}
    parts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in more.items()]
    return stage if isinstance(stage, str) else None, f"{name}[{','.join(parts)}]" if parts else name
