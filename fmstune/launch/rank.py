"""What a process of torchrun's does in addition to its work: it reports to torchrun why it failed, and does
not outlive it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fmstune.system.files import replace_text

LAUNCHED = "FMSTUNE_LAUNCHED"
"""Set by a launcher that prints the cause, last and once, to its process id: its ranks leave that to it."""
SECONDS_TO_STOP = 24 * 3600
"""A rank that is asked to stop saves a checkpoint first, however long that takes; torchrun gives it 30 s."""

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_PR_SET_PDEATHSIG = 1
_LARGEST_OF_FAILURES = 127
"""Exit codes above it are of signals."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a rank of this machine has ended; `expected`: with an error that some part of fmstune raises."""

    message: str
    exit_code: int
    expected: bool
    time: float
    local_rank: int


def is_launched() -> bool:
    """Whether a launcher that prints the cause has started this process, and not one of its ranks."""
    return os.environ.get(LAUNCHED) == str(os.getppid())


def under_torchrun() -> bool:
    """Whether torchrun has started this process, as accelerate does too."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def leaving_in_order() -> Iterator[None]:
    """Take this process out of torch's group of processes when its work is done, or was stopped by a signal.

    Left to the end of the process, threads of the group now and then abort it with SIGABRT, which torchrun
    takes for a failure of a run that has succeeded (https://github.com/pytorch/pytorch/issues/190489). After
    an error other processes may wait in an operation, and the group is left as it is.
    """
    try:
        yield
    except BaseException as error:
        if hasattr(error, "signum"):
            _leave_group()
        raise
    _leave_group()


def _leave_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def follow_parent() -> None:
    """Have this rank asked to stop when torchrun dies, which cannot do so when it is killed itself.

    On Linux alone; elsewhere a rank works until the others are missed.
    """
    if not sys.platform.startswith("linux") or not under_torchrun():
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    launcher = os.environ.get(LAUNCHED)
    try:
        os.kill(int(launcher or os.getpid()), 0)
    except ProcessLookupError:  # it has died already
        os.kill(os.getpid(), signal.SIGTERM)


def report_cause(message: str, exit_code: int, *, expected: bool) -> bool:
    """Report the cause to torchrun, whose own table then ends with it, where it would name a web page.

    Returns whether torchrun is there and could be reached.
    """
    path = os.environ.get(_ERROR_FILE)
    if not path:
        return False
    cause = Cause(message, exit_code, expected, time.time(), _local_rank())
    # torchrun compares whole seconds, and takes the lowest rank of equal ones: a consequence comes later.
    noted = int(cause.time) + follows_another()
    more = {"py_callstack": message, "timestamp": str(noted), "fmstune": asdict(cause)}
    try:
        # Whole or not at all: torchrun and the other ranks read it at any moment.
        replace_text(Path(path), json.dumps({"message": {"message": message, "extraInfo": more}}))
    except OSError:
        return False
    return True


def report_exit(end: SystemExit) -> None:
    """Report that code of the user's own has ended this rank: without its process the run fails, whatever the
    exit code."""
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    said = f": {end.code}" if isinstance(end.code, str) else ""
    rank = os.environ.get("RANK", "0")
    report_cause(f"rank {rank} ended with exit code {code}: SystemExit{said}", 1, expected=False)


def reported_causes(directory: Path) -> list[Cause]:
    """What the ranks have reported, the first to fail first; `directory` holds torchrun's folder of each."""
    found = []
    for path in directory.glob("*/error.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            raw = json.loads(path.read_text("utf-8"))
            found.append(Cause(**raw["message"]["extraInfo"]["fmstune"]))
    return sorted(found, key=lambda cause: cause.time)


def is_lost_peer(message: str) -> bool:
    """Whether an error of gloo's or NCCL's says no more than that another process has ended."""
    words = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return under_torchrun() and any(word in message for word in words)


def cause_of_lost_peer(message: str) -> str | None:
    """Why another rank has ended, of which an error of gloo's or NCCL's says only that it has; `None` for
    other errors. A rank says it before its connections close; one that is killed, or that is on another
    machine, says nothing here."""
    if not is_lost_peer(message):
        return None
    return failure_of_another() or "another process of this run has ended, without a word on this machine"


def failure_of_another() -> str | None:
    """What another rank of this machine has reported first of a failure; an interruption is none."""
    causes = [cause for cause in _causes_here() if cause.exit_code <= _LARGEST_OF_FAILURES]
    return next((cause.message for cause in causes if cause.local_rank != _local_rank()), None)


def follows_another() -> bool:
    """Whether another rank of this machine has failed before: then what this one sees of it is no cause."""
    causes = _causes_here()
    return bool(causes) and causes[0].local_rank != _local_rank()


def _causes_here() -> list[Cause]:
    path = os.environ.get(_ERROR_FILE)
    return reported_causes(Path(path).parent.parent) if path else []


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
