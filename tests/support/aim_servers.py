"""Real Aim servers, and repositories for them."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.support.commands import Command, end_session, fmstune, start
from tests.support.once import made_once
from tests.support.waiting import wait_for


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def empty_repository() -> Path:
    """A new Aim repository, created once and copied, because creating one takes seconds."""
    aim = str(Path(sys.executable).with_name("aim"))

    def make(folder: Path) -> None:
        made = fmstune("init", "--repo", str(folder), "-s", cwd=folder, module=aim, life="aim")
        assert made.returncode == 0, made.stderr

    return made_once("aim-repository", make)


def begin_repository(folder: Path) -> None:
    """Create an Aim repository in the folder, as later runs find it."""
    shutil.copytree(empty_repository(), folder, dirs_exist_ok=True)


def provide_database() -> None:
    """Create the database that `tests.support.aim_database` copies, here and in processes started later."""
    (database,) = (empty_repository() / ".aim").glob("*.sqlite")
    os.environ["PYTEST_AIM_DATABASE"] = str(database)


@contextlib.contextmanager
def aim_server(repository: Path, port: int) -> Iterator[Command]:
    """A real Aim server on 127.0.0.1, ended together with everything it started. This is the command that
    `aim server` runs after importing the SDK once more."""
    if not repository.exists():
        shutil.copytree(empty_repository(), repository)
    mode = {"__AIM_ENV_MODE__": "prod", "__AIM_SERVER_MOUNT_REPO_PATH__": str(repository.absolute() / ".aim")}
    with (repository / "server.log").open("ab") as log:
        server = start(
            "--ws-max-size", "1073741824", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--log-level", "warning", "aim.ext.transport.run:app",
            module="uvicorn", cwd=repository, stdout=log.fileno(), stderr=log.fileno(), sdks=True,
            session=True, **mode,
        )  # fmt: skip
    try:
        wait_for(lambda: answers(port) or server.poll() is not None)
        assert server.poll() is None, (repository / "server.log").read_text()[-2000:]
        yield server
    finally:
        end_session(server)


def answers(port: int) -> bool:
    """Whether an Aim server answers."""
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/status/", timeout=1).status_code == 200
    return False
