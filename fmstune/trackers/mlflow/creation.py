"""Create a run in an MLflow store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def created(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> Run:
    """Create a run. Raises MLflow's errors, also when only the answer was lost."""
    with _asked_once():
        return client.create_run(experiment, tags=dict(tags), run_name=name)


@contextlib.contextmanager
def _asked_once() -> Iterator[None]:
    """Let MLflow send its request only once: repeated because its answer was lost, it leaves an empty run
    behind."""
    before = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        del os.environ[_RETRIES]
        if before is not None:
            os.environ[_RETRIES] = before
