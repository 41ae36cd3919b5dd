"""Lives of a shipper, which may be killed, in processes that cost a fork instead of an import.

A `Nursery` is a process that has imported an SDK and used none of it. For each request it forks a child,
which delivers a run's journal to a tracker as a shipper does, or reads back what the tracker's storage holds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.shipping.crashes import note_death
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.standing import DeliveryFailed
from fmstune.trackers.base import Tracker
from fmstune.trackers.compat import build_tracker

_HOOKS = ("track_point", "set_params", "track_table", "close")


@dataclass(frozen=True)
class Kill:
    """SIGKILL at a tracker's call of this number, before it or after it."""

    call: int
    after: bool


class Nursery:
    """Forks lives from a process that has imported `modules`."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.lives", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def deliver(
        self, directory: Path, reference: str, options: Mapping[str, Any], kill: Kill | None = None
    ) -> bool:
        """One life of a shipper, `True` when it came to its end."""
        order = {"directory": str(directory), "reference": reference, "options": options}
        kill_at = {"kill": [kill.call, kill.after]} if kill else {}
        code = self._ask({"do": "deliver", **order, **kill_at})["code"]
        if code < 0:
            note_death(directory, "t", f"its process died of signal {-code}")
        assert code in (0, 1, -signal.SIGKILL), f"exit code {code}"
        return bool(code == 0)

    def read(self, reader: str, folder: Path) -> Any:
        """What `reader` (`module:function`) returns for a folder, as JSON has it."""
        return self._ask({"do": "read", "reader": reader, "directory": str(folder)})["answer"]

    def close(self) -> None:
        """End the process; the lives have ended before."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer


@contextlib.contextmanager
def nursery(*modules: str) -> Iterator[Nursery]:
    """A `Nursery` that ends with the block."""
    made = Nursery(modules)
    try:
        yield made
    finally:
        made.close()


def _live(order: Mapping[str, Any]) -> int:
    directory = Path(order["directory"])
    os.chdir(directory.parent)
    tracker = build_tracker(order["reference"], "t", order["options"])
    if "kill" in order:
        _doom(tracker, Kill(*order["kill"]))
    try:
        ledger = load_ledger(directory, "t") or Ledger("t")
        Delivery(directory, tracker, ledger, forgive=True).run(lambda: True)
    except DeliveryFailed:
        traceback.print_exc()
        return 1
    return 0


def _doom(tracker: Tracker, kill: Kill) -> None:
    calls = 0

    def doomed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill.call and not kill.after:
                os.kill(os.getpid(), signal.SIGKILL)
            done = hook(*args, **kwargs)
            if calls == kill.call:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return call

    for name in _HOOKS:
        setattr(tracker, name, doomed(getattr(tracker, name)))


def _in_a_child(request: Mapping[str, Any]) -> dict[str, Any]:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        code = 2
        try:
            if request["do"] == "deliver":
                code = _live(request)
            else:
                module, _, name = request["reader"].partition(":")
                answer = getattr(importlib.import_module(module), name)(Path(request["directory"]))
                with os.fdopen(writes, "w") as pipe:
                    json.dump(answer, pipe, default=str)
                code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)  # as a shipper ends: Aim's own end would wait in its finalizers
    os.close(writes)
    with os.fdopen(reads) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if request["do"] == "read":
        return {"answer": json.loads(text)} if code == 0 else {"error": f"the reader ended with {code}"}
    return {"code": code}


def main() -> None:
    """Import what is to be imported, and answer requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what SDKs print is no answer
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        answers.write(json.dumps(_in_a_child(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
