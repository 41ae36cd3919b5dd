"""Runs commands, mostly `fmstune`, in subprocesses without paying for their imports each time.

Most processes are forked from a warm interpreter (`tests.support.forkserver`). A process is started as a
user's is if its environment has variables that libraries read at import, or modules from outside this tree,
or with `fresh=True`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from tests.support import warm
from tests.support.process import Process
from tests.support.warm import ROOT

__all__ = ["FAST", "ROOT", "Command", "end_session", "fmstune", "settings", "start"]
FAST = ["--set", "training.eval_strategy=no", "--set", "training.logging_steps=1"]
"""Settings of a run that logs each step and has no evals."""

Command = Union[Process, "subprocess.Popen[str]"]


def settings(**more: str) -> dict[str, str]:
    """The test's environment, with this tree's packages and additional variables."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def start(
    *arguments: str,
    cwd: Path,
    module: str = "fmstune",
    limits: Mapping[int, int] | None = None,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    fresh: bool = False,
    light: bool = False,
    sdks: bool = False,
    life: str | None = None,
    session: bool = False,
    closed: bool = False,
    scanner: bool = False,
    **environment: str,
) -> Command:
    """Start `python -m MODULE ARGUMENTS`, with additional variables and with kernel limits.

    `module` may be the path of a script. `stdout` and `stderr` are what `Popen` takes: a file descriptor,
    PIPE or DEVNULL. stdin is empty. `light` is for a command that needs no trainer: it is forked from an
    interpreter without one. `sdks` is for a command that needs the SDKs of trackers, `life` for one that
    needs one tracker's (`""`: no SDK). `session` gives it a session of its own, for `end_session`. If
    `closed`, it has no standard streams. A training samples system metrics only with `scanner`.
    """
    # Tests count events, and samples are taken by wall-clock time.
    if arguments[:1] == ("train",) and not scanner:
        arguments = ("train", "--set", "resources.interval=0", *arguments[1:])
    variables = settings(**environment)
    command = [sys.executable, *([] if os.sep in module else ["-m"]), module, *arguments]
    name = "sdks" if sdks else "light" if light else "trainer"
    forking = None if fresh else warm.serving(name if life is None else warm.of_life(life), variables)
    if forking:
        request = {
            "module": module, "arguments": arguments, "cwd": str(cwd), "environment": variables,
            "limits": list((limits or {}).items()), "session": session, "closed": closed,
        }  # fmt: skip
        return _forked(forking, request, command, stdout, stderr)

    def begin() -> None:
        for kind, most in (limits or {}).items():
            resource.setrlimit(kind, (most, most))
        if closed:
            os.closerange(0, 3)

    return subprocess.Popen(
        command, cwd=cwd, env=variables, preexec_fn=begin if limits or closed else None,
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True, start_new_session=session,
    )  # fmt: skip


def _forked(
    forking: warm.Warm, request: Mapping[str, Any], command: Sequence[str], stdout: int, stderr: int
) -> Process:
    with contextlib.ExitStack() as theirs:
        nothing = theirs.enter_context(open(os.devnull, "r+b")).fileno()
        numbers, mine = [nothing], []
        for stream in (stdout, stderr):
            if stream == subprocess.PIPE:
                reading, writing = os.pipe()
                theirs.callback(os.close, writing)
                mine.append(open(reading, encoding="utf-8"))  # noqa: SIM115  (`Process` closes it)
            else:
                mine.append(None)
                writing = nothing if stream == subprocess.DEVNULL else stream
            numbers.append(writing)
        return Process(command, forking.ask(request, numbers), *mine)


def fmstune(
    *arguments: str, cwd: Path, timeout: float | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command and wait for it; for `how` see `start`."""
    with start(*arguments, cwd=cwd, **how) as process, _killed_after_a_failure(process):
        out, err = process.communicate(timeout=timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def end_session(process: Command) -> None:
    """Kill a command that has its own session, with everything that it started there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may not have reached its `setsid` yet
    process.wait()


@contextlib.contextmanager
def _killed_after_a_failure(process: Command) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.kill()
        raise
