"""Real servers of Aim's, and repositories for them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.support.waiting import wait_for


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def empty_repository() -> Path:
    """A new Aim repository; making one takes seconds, so that there is one to be copied."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    aim = Path(sys.executable).with_name("aim")
    subprocess.run([aim, "init", "--repo", folder.name, "-s"], check=True, capture_output=True)
    return Path(folder.name)


@contextlib.contextmanager
def aim_server(repository: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real `aim server` on 127.0.0.1, ended with everything it started."""
    if not repository.exists():
        shutil.copytree(empty_repository(), repository)
    aim = Path(sys.executable).with_name("aim")
    with (repository / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [aim, "server", "--repo", str(repository), "--host", "127.0.0.1", "--port", str(port), "-y"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(lambda: answers(port))
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    """Whether a server of Aim's is ready."""
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/status/", timeout=1).status_code == 200
    return False
