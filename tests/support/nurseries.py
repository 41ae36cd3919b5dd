"""Lives of shippers, forked from interpreters that import a tracker's SDK once per session."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.delivery.shipping.quiet import QUIET
from fmstune.testing.fork_server import SECRET, ChildError, ForkServer, answer_of
from tests.support.aim_servers import provide_database
from tests.support.commands import fmstune, start
from tests.support.sdks import MODULES


class SharedNursery(ForkServer):
    """The lives of one tracker, each with the test's environment; `""` is for trackers without an SDK, `None`
    for code that needs transformers.

    A `ForkServer` spends a second or two on importing the SDK, and each test file in each worker would have
    one."""

    def __init__(self, tracker: str | None) -> None:
        self._tracker = tracker
        if tracker == "aim":
            provide_database()

    def close(self) -> None:
        """Ends nothing: other tests use the interpreter."""

    def _ask(self, request: Mapping[str, Any]) -> Any:
        life = start(
            json.dumps(request), cwd=Path.cwd(), module="tests.support.run_life", life=self._tracker,
            stderr=2, FMSTUNE_CONFORMANCE_SECRET=SECRET, **_quiet(),
        )  # fmt: skip
        with life:
            assert life.stdout is not None
            text = life.stdout.read()
            code = life.wait()
        answer = answer_of(request, code, text)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer


def lives(tracker: str) -> ForkServer:
    """The lives of a tracker; all trackers without an SDK share one interpreter."""
    return SharedNursery(tracker if tracker in MODULES else "")


def run_code(code: str, *arguments: str, tracker: str) -> subprocess.CompletedProcess[str]:
    """Run code in the current folder, in a subprocess that has a tracker's SDK."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "code.py")
        script.write_text(code)
        return fmstune(*arguments, cwd=Path.cwd(), module=str(script), life=tracker, **_quiet())


def _quiet() -> dict[str, Any]:
    return {name: value for name, value in QUIET.items() if name not in os.environ}
