"""Runs of an MLflow store: a server, an SQLite file, or a folder `mlruns`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmstune.trackers.imports.past import NotASource, PastRun
from fmstune.trackers.records import MetricPoint, Status
from fmstune.trackers.values.stages import split_stages

_STATUSES: dict[str, Status] = {"FINISHED": "finished", "FAILED": "failed"}
_NOTE = "mlflow.note.content"


def address(source: str) -> str | None:
    """The address of the store at a path, or `source` if it is one."""
    if source.startswith(("http://", "https://", "sqlite:", "databricks")):
        return source
    path = Path(source)
    for store in (path, path / "mlflow.db", path / "mlruns.db"):
        if store.is_file() and store.suffix == ".db":
            return f"sqlite:///{store.resolve()}"
    for folder in (path, path / "mlruns"):
        if any(folder.glob("*/meta.yaml")):
            return folder.resolve().as_uri()
    return None


def read(where: str) -> Iterator[PastRun]:
    """Yield all runs of all experiments. Raises `NotASource` without MLflow's client, and what that
    raises."""
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise NotASource("an MLflow store needs its client: pip install 'fmstune[mlflow]'.") from None
    _require_database(where)
    client = MlflowClient(where)
    for experiment in client.search_experiments():
        token = None
        while True:
            page = client.search_runs([experiment.experiment_id], page_token=token)
            for run in page:
                yield _past(client, run, experiment.name)
            if not (token := page.token):
                break


def _require_database(where: str) -> None:
    """Raise for an SQLite file that is missing, which MLflow would create, or closed, which it would try to
    open for minutes."""
    kind, _, file = where.partition(":///")
    if kind.startswith("sqlite"):
        try:
            Path(file.partition("?")[0]).open("rb").close()
        except FileNotFoundError:
            raise NotASource(f"{where}: there is no such file.") from None


def _past(client: Any, run: Any, experiment: str) -> PastRun:
    points, tags = [], run.data.tags
    for key in run.data.metrics:
        for each in client.get_metric_history(run.info.run_id, key):
            stage, name = _split(key)
            points.append(MetricPoint({name: each.value}, stage, each.step, None, each.timestamp / 1000))
    points.sort(key=lambda point: (point.time or 0.0, point.step or 0))
    params: dict[str, dict[str, Any]] = {}
    for key, value in run.data.params.items():
        namespace, dot, name = key.partition(".")
        params.setdefault(namespace if dot else "params", {})[name if dot else key] = value
    own = {key: value for key, value in tags.items() if not key.startswith(("mlflow.", "fmstune"))}
    return PastRun(
        "mlflow",
        run.info.run_id,
        run.info.run_name or run.info.run_id,
        run.info.start_time / 1000,
        _STATUSES.get(run.info.status, "interrupted"),
        tuple(points),
        params,
        group=experiment,
        tags=tuple(f"{key}={value}" if value else key for key, value in own.items() if key != "error"),
        notes=tags.get(_NOTE),
        error=tags.get("error"),
    )


def _split(key: str) -> tuple[str | None, str]:
    """`eval_loss` and `loss` belong to the stages `eval` and `train`; a slash separates other stages from
    names."""
    stage, slash, name = key.partition("/")
    if slash and name:
        return stage, name
    ((found, values),) = split_stages({key: 0.0}).items() or ((None, {key: 0.0}),)
    return found, next(iter(values))
