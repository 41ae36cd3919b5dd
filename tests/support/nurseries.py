"""Lives of shippers, forked from interpreters that have imported trackers' SDKs for the whole session."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.delivery.shipping.quiet import QUIET
from fmstune.testing.lives import SECRET, LifeError, Nursery, answer_of
from tests.support.aim_servers import provide_database
from tests.support.commands import fmstune, start
from tests.support.sdks import MODULES


class SharedNursery(Nursery):
    """The lives of one tracker, `""` for what needs no SDK, each with the test's environment; `None` for what
    needs transformers.

    A `Nursery` imports the SDK for a second or two; each file of tests, in each worker, would have one."""

    def __init__(self, tracker: str | None) -> None:
        self._tracker = tracker
        if tracker == "aim":
            provide_database()

    def close(self) -> None:
        """Nothing ends: others need the interpreter."""

    def _ask(self, request: Mapping[str, Any]) -> Any:
        life = start(
            json.dumps(request), cwd=Path.cwd(), module="tests.support.a_life", life=self._tracker, stderr=2,
            FMSTUNE_CONFORMANCE_SECRET=SECRET, **_quiet(),
        )  # fmt: skip
        with life:
            assert life.stdout is not None
            text = life.stdout.read()
            code = life.wait()
        answer = answer_of(request, code, text)
        if "error" in answer:
            raise LifeError(answer["error"])
        return answer


def lives(tracker: str) -> Nursery:
    """The lives of a tracker; one without an SDK shares those of all such."""
    return SharedNursery(tracker if tracker in MODULES else "")


def run_code(code: str, *arguments: str, tracker: str) -> subprocess.CompletedProcess[str]:
    """Run code in the current folder, in a process of its own that has a tracker's SDK."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "code.py")
        script.write_text(code)
        return fmstune(*arguments, cwd=Path.cwd(), module=str(script), life=tracker, **_quiet())


def _quiet() -> dict[str, Any]:
    return {name: value for name, value in QUIET.items() if name not in os.environ}
