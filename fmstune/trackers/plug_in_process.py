"""Ask about a plug-in in a process of its own: its import may print, hang, fork, or end its process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


class NoAnswer(Exception):
    """The process of a plug-in has given no answer; the message says why, after "its import"."""


def ask(question: str, *arguments: str, seconds: float) -> Any:
    """What the function `module:name` returns there for these arguments, as JSON. Raises `NoAnswer`."""
    import subprocess  # with `tempfile`, a tenth of the time of `fmstune --help`
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        # Not a pipe: what the plug-in forks would keep it open.
        answer = Path(folder, "answer.json")
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(answer), question, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"took longer than {seconds:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        try:
            return json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            raise NoAnswer(f"ended the process ({how})") from None


def _main(answer: str, question: str, *arguments: str) -> None:
    import importlib

    from fmstune.user_code import enter_tracker_process

    enter_tracker_process()
    module, _, name = question.partition(":")
    found = getattr(importlib.import_module(module), name)(*arguments)
    Path(answer).write_text(json.dumps(found, default=str), encoding="utf-8")
    os._exit(0)  # its threads may never end


if __name__ == "__main__":
    _main(*sys.argv[1:])
