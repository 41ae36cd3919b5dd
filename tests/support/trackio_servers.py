"""Real trackio servers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.support.waiting import wait_for

TOKEN = "a-token-of-a-test-51c09d7e"
_SERVE = """
import sys, trackio
trackio.show(open_browser=False, host="127.0.0.1", server_port=int(sys.argv[1]), footer=False)
"""


@contextlib.contextmanager
def trackio_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The server that `trackio show` starts, on 127.0.0.1, with its databases in this folder and `TOKEN`."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"TRACKIO_DIR": str(folder), "TRACKIO_WRITE_TOKEN": TOKEN}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(port)],
            env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: answers(port) or server.poll() is not None)
        assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    """Whether a trackio server answers."""
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/version", timeout=1).status_code == 200
    return False
