"""Real MLflow servers, and stores for them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tests.support.aim_servers import free_port
from tests.support.commands import Command, end_session, fmstune, start
from tests.support.once import made_once
from tests.support.waiting import wait_for

_QUIET = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a server of a test",  # required by basic-auth
    "MLFLOW_AUTH_ADMIN_PASSWORD": "of-a-test-1234",
}


@functools.cache
def empty_store() -> Path:
    """An SQLite store without runs, created once and copied, because creating one takes seconds."""

    def make(folder: Path) -> None:
        store = f"sqlite:///{folder}/mlflow.db"
        made = fmstune(store, cwd=folder, module="tests.support.new_store", life="mlflow")
        assert made.returncode == 0, made.stderr

    return made_once("mlflow-store", make) / "mlflow.db"


def store_in(folder: Path, artifacts: str | None = None) -> Path:
    """A new store in a folder, with its artifacts next to it or at the given address."""
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(shutil.copy(empty_store(), folder / "mlflow.db"))
    with sqlite3.connect(path) as store:
        store.execute("UPDATE experiments SET artifact_location = ?", [artifacts or f"{folder}/artifacts/0"])
    return path


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int, *, guarded: bool = False) -> Iterator[Command]:
    """A real MLflow server on 127.0.0.1 with a store in this folder, ended together with all that it started.
    The command is the one that `mlflow server` runs; if `guarded`, with `--app-name basic-auth`."""
    if not (folder / "mlflow.db").exists():
        store_in(folder, "mlflow-artifacts:/0")
    address = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    store = f"sqlite:///{folder}/mlflow.db"
    variables: dict[str, Any] = _QUIET | {
        "_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true", "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }  # fmt: skip
    app = ("--factory", "mlflow.server.auth:create_app") if guarded else ("mlflow.server.fastapi_app:app",)
    with (folder / "server.log").open("ab") as log:
        server = start(
            *address, *app, module="uvicorn", sdks=True, cwd=folder, stdout=log.fileno(), stderr=log.fileno(),
            session=True, **variables,
        )  # fmt: skip
    try:
        wait_for(lambda: answers(port) or server.poll() is not None)
        assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
        yield server
    finally:
        end_session(server)


def answers(port: int) -> bool:
    """Whether an MLflow server answers."""
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200
    return False


@functools.cache
def shared_server() -> tuple[str, Path]:
    """The address and the folder of the server that all tests share, which runs until they end."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    port = free_port()
    server = mlflow_server(Path(folder.name), port)
    server.__enter__()
    atexit.register(server.__exit__, None, None, None)
    return f"http://127.0.0.1:{port}", Path(folder.name)
