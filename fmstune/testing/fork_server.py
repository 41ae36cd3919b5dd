"""Run shippers that may be killed or fail, in processes that cost only a fork instead of an import.

A `ForkServer` is a process that has imported an SDK without using it. For each request it forks a child,
which delivers a run's journal to a tracker as a shipper does, or reads data back from the tracker's storage.
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
from typing import Any, NoReturn

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.shipping.crashes import note_death
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import TrackerError
from fmstune.trackers.registry import build_tracker
from fmstune.user_code import enter_tracker_process

SECRET = "conformance-7d1f0e94c2ab4f"
"""In the environment of each process; no tracker has a reason to store it."""
_IMPORT_SECONDS = 120
_NO_ANSWER = json.dumps({"error": f"a module cannot be imported, at least not in {_IMPORT_SECONDS} s"})
_DONE, _FAILED = 77, 75
"""The exit codes of a child that delivers; a tracker may end it with another one, such as 0."""
_REFUSED = 3
"""The exit code of a child whose tracker cannot be used."""
_HOOKS = ("track_point", "set_params", "track_table", "track_media", "track_artifact", "close")


@dataclass(frozen=True)
class Kill:
    """SIGKILL before or after the tracker's call with this number."""

    call: int
    after: bool


@dataclass(frozen=True)
class Failure:
    """The tracker's call with this number raises, once."""

    call: int


class ChildError(Exception):
    """A function called in a child raised, or ended its process."""


class RefusedError(ChildError):
    """The tracker cannot be used; the message is a sentence that says why."""


def leaks(run: Path) -> list[str]:
    """A sentence if a file beside the folder of the run contains the secret of the delivering process."""
    for path in run.parent.rglob("*"):
        if path.is_file() and not path.is_relative_to(run) and SECRET.encode() in path.read_bytes():
            where = path.relative_to(run.parent)
            return [f"It stores the environment of its process, secrets included: {where}."]
    return []


class ForkServer:
    """Forks children from a process that has imported `modules`."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        """The first module is the tracker's; if it cannot be imported, each child reports that. It may be
        empty."""
        path = os.pathsep.join(each or "." for each in sys.path)  # a test run may have extended it
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from fmstune.testing import fork_server; fork_server.main()", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "FMSTUNE_CONFORMANCE_SECRET": SECRET},
        )

    def deliver(
        self,
        directory: Path,
        reference: str,
        options: Mapping[str, Any],
        fault: Kill | Failure | None = None,
        seconds: int = 600,
        *,
        forgive: bool = True,
    ) -> bool:
        """Run one shipper for at most `seconds`; return whether it finished. With `forgive`, events
        that failed before are tried again, as at the start of each `sync`."""
        order: dict[str, Any] = {"directory": str(directory), "reference": reference, "options": options}
        order |= {"seconds": seconds, "forgive": forgive}
        if isinstance(fault, Kill):
            order["kill"] = [fault.call, fault.after]
        elif isinstance(fault, Failure):
            order["failure"] = fault.call
        code = self._ask({"do": "deliver", **order})["code"]
        if code not in (_DONE, _FAILED):
            why = f"did not return within {seconds} s" if code == -signal.SIGALRM else ended_by(code)
            note_death(directory, "t", f"its process {why}")
        return bool(code == _DONE)

    def read(self, reader: str, folder: Path, *arguments: Any, seconds: int = 600) -> Any:
        """Return the result of `reader` (`module:function`) for a folder and arguments, converted to JSON.
        Raises `RefusedError` if the tracker cannot be used, and `ChildError` if it raises something else,
        ends its process, or takes longer than this."""
        request = {"do": "read", "reader": reader, "directory": str(folder), "arguments": arguments}
        return self._ask({**request, "seconds": seconds})["answer"]

    def close(self) -> None:
        """End the process; all of its children have ended already."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or _NO_ANSWER)
        if "error" in answer:
            raise (RefusedError if answer.get("refused") else ChildError)(answer["error"])
        return answer


@contextlib.contextmanager
def fork_server(*modules: str) -> Iterator[ForkServer]:
    """A `ForkServer` that ends with the block."""
    made = ForkServer(modules)
    try:
        yield made
    finally:
        made.close()


def _deliver(order: Mapping[str, Any]) -> int:
    directory = Path(order["directory"])
    os.chdir(directory.parent)
    tracker = build_tracker(order["reference"], "t", order["options"])
    if "kill" in order:
        _inject(tracker, Kill(*order["kill"]))
    elif "failure" in order:
        _inject(tracker, Failure(order["failure"]))
    try:
        ledger = load_ledger(directory, "t") or Ledger("t")
        Delivery(directory, tracker, ledger, forgive=order["forgive"]).run(lambda: True)
    except DeliveryFailed:
        traceback.print_exc()
        return _FAILED
    return _DONE


def _inject(tracker: Tracker, fault: Kill | Failure) -> None:
    calls = 0

    def failing(hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            now = calls == fault.call
            if now and isinstance(fault, Failure):
                raise RuntimeError("a failure of the conformance kit")
            if now and isinstance(fault, Kill) and not fault.after:
                os.kill(os.getpid(), signal.SIGKILL)
            done = hook(*args, **kwargs)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return call

    for name in _HOOKS:
        setattr(tracker, name, failing(getattr(tracker, name)))


def _in_a_child(request: Mapping[str, Any]) -> dict[str, Any]:
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        with open(os.devnull) as nothing:  # a tracker that prompts would take the requests for answers
            os.dup2(nothing.fileno(), 0)
        run_request(request, writes)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        text = pipe.read()
    return answer_of(request, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text)


def run_request(request: Mapping[str, Any], answers: int) -> NoReturn:
    """Execute a request in this process, write a result to the file descriptor `answers`, and exit."""
    code = 2
    try:
        # The kernel kills a hung process, even inside an extension that holds the GIL.
        signal.alarm(request.get("seconds", 600))
        if request["do"] == "deliver":
            code = _deliver(request)
        else:
            answer = _read(request)
            with os.fdopen(answers, "w") as pipe:
                json.dump(answer, pipe, default=str)
            code = 0
    except TrackerError as error:
        if request["do"] == "read":
            with os.fdopen(answers, "w") as pipe:
                pipe.write(str(error))
            code = _REFUSED
        else:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # like a shipper: Aim's finalizers would wait


def answer_of(request: Mapping[str, Any], code: int, text: str) -> dict[str, Any]:
    """The answer to a request, from the exit code of its child and the text that it wrote."""
    if request["do"] != "read":
        return {"code": code}
    if code == 0:
        return {"answer": json.loads(text)}
    if code == _REFUSED and text:
        return {"error": text, "refused": True}
    how = f"did not return within {request['seconds']} s" if code == -signal.SIGALRM else ended_by(code)
    return {"error": f"its process {how}"}


def _read(request: Mapping[str, Any]) -> Any:
    module, _, name = request["reader"].partition(":")
    return getattr(importlib.import_module(module), name)(Path(request["directory"]), *request["arguments"])


def ended_by(code: int) -> str:
    """Describe how a process ended."""
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main() -> None:
    """Import the modules, of which the first is the tracker's own, and answer requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep the output of SDKs out of the answers
    enter_tracker_process()
    own, *others = sys.argv[1:]
    signal.alarm(_IMPORT_SECONDS)
    if own:
        with contextlib.suppress(Exception, SystemExit):  # each child tries again, and reports it
            importlib.import_module(own)
    for module in others:
        importlib.import_module(module)
    signal.alarm(0)
    for line in sys.stdin:
        answers.write(json.dumps(_in_a_child(json.loads(line))) + "\n")
        answers.flush()
