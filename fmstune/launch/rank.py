"""The duties of a process started by torchrun: report to it why it failed, and do not outlive it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmstune.system.files import replace_text

LAUNCHED = "FMSTUNE_LAUNCHED"
"""Set to its process id by a launcher that prints the cause, once and last; its ranks leave that to it."""
SECONDS_TO_STOP = 24 * 3600
"""A rank asked to stop first saves a checkpoint, however long that takes; torchrun's default is 30 s."""

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_TRAINING = "training"
"""A file beside a rank's report: its training has begun."""
_STOPPED = "stopped"
"""A file in the launcher's folder: a signal has asked it to stop."""
_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PR_SET_PDEATHSIG = 1
_LARGEST_OF_FAILURES = 127
"""Higher exit codes are those of signals."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a rank on this machine ended; `expected`: with one of fmstune's own errors."""

    message: str
    exit_code: int
    expected: bool
    time: float
    local_rank: int


def is_launched() -> bool:
    """Whether a launcher that prints the cause started this process, directly rather than by a rank."""
    return os.environ.get(LAUNCHED) == str(os.getppid())


def under_torchrun() -> bool:
    """Whether torchrun, which accelerate also uses, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def needs_process_group(training: Mapping[str, Any]) -> bool:
    """Whether these settings need torch's process group, even for one process, and no launcher has set what
    it is made from. Without one, accelerate leaves out FSDP, and DeepSpeed looks for MPI."""
    asked = bool(training.get("fsdp") or training.get("deepspeed"))
    return asked and not all(name in os.environ for name in _GROUP)


@contextlib.contextmanager
def process_group_left() -> Iterator[None]:
    """Leave torch's process group when the work is done, or was stopped by a signal.

    Otherwise threads of the group sometimes abort the process with SIGABRT at exit, so that torchrun reports
    a successful run as failed (https://github.com/pytorch/pytorch/issues/190489). After an error, other
    processes may be waiting in an operation, so the group is not destroyed.
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


def end_with_parent() -> None:
    """Get SIGTERM when torchrun dies, since it cannot stop this rank when it is killed itself.

    Only on Linux; elsewhere, a rank works until it notices that the others are gone.
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
    """Report the cause to torchrun, whose table then ends with it instead of with the address of a web page.

    Returns whether torchrun is there and could be reached.
    """
    path = os.environ.get(_ERROR_FILE)
    if not path:
        return False
    cause = Cause(message, exit_code, expected, time.time(), _local_rank())
    # torchrun compares whole seconds, and takes the lowest rank of equal ones: date a consequence later.
    noted = int(cause.time) + is_consequence()
    more = {"py_callstack": message, "timestamp": str(noted), "fmstune": asdict(cause)}
    try:
        # Atomically: torchrun and the other ranks may read it at any time.
        replace_text(Path(path), json.dumps({"message": {"message": message, "extraInfo": more}}))
    except OSError:
        return False
    return True


def report_training() -> None:
    """Tell the launcher that the training has begun: from here on, a signal is answered with a checkpoint."""
    if path := os.environ.get(_ERROR_FILE):
        with contextlib.suppress(OSError):
            Path(path).with_name(_TRAINING).touch()


def is_training(directory: Path) -> bool:
    """Whether the training of a rank on this machine has begun; `directory` contains torchrun's folders."""
    return any(directory.rglob(_TRAINING))


def note_stop(directory: Path) -> None:
    """Tell the ranks that a signal has asked their launcher to stop; `directory` contains torchrun's
    folders."""
    with contextlib.suppress(OSError):
        (directory / _STOPPED).touch()


def launcher_is_stopped() -> bool:
    """Whether a signal has asked this rank's launcher to stop. Otherwise, a signal comes from torchrun, as
    another rank has ended."""
    path = os.environ.get(_ERROR_FILE)
    return bool(path) and any((folder / _STOPPED).exists() for folder in Path(path or "").parents[:4])


def report_exit(end: SystemExit) -> None:
    """Report that user code ended this rank: without its process, the run fails, whatever the exit code."""
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    said = f": {end.code}" if isinstance(end.code, str) else ""
    rank = os.environ.get("RANK", "0")
    report_cause(f"rank {rank} ended with exit code {code}: SystemExit{said}", 1, expected=False)


def reported_causes(directory: Path) -> list[Cause]:
    """The reports of the ranks, the first to fail first; `directory` contains torchrun's folder for each."""
    found = []
    for path in directory.glob("*/error.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            raw = json.loads(path.read_text("utf-8"))
            found.append(Cause(**raw["message"]["extraInfo"]["fmstune"]))
    return sorted(found, key=lambda cause: cause.time)


def is_lost_peer(message: str) -> bool:
    """Whether an error of gloo or NCCL only says that another process has ended."""
    words = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return under_torchrun() and any(word in message for word in words)


def cause_of_lost_peer(message: str) -> str | None:
    """Why another rank ended, if this is an error of gloo or NCCL that only says that it has; `None` for
    other errors. A rank reports the cause before its connections close, unless it is killed or on another
    machine."""
    if not is_lost_peer(message):
        return None
    return failure_of_another() or "another process of this run exited, without a report on this machine"


def failure_of_another() -> str | None:
    """The first failure reported by another rank on this machine; interruptions do not count."""
    causes = [cause for cause in _causes_here() if cause.exit_code <= _LARGEST_OF_FAILURES]
    return next((cause.message for cause in causes if cause.local_rank != _local_rank()), None)


def is_consequence() -> bool:
    """Whether another rank on this machine failed first: an error here is then a consequence."""
    causes = _causes_here()
    return bool(causes) and causes[0].local_rank != _local_rank()


def _causes_here() -> list[Cause]:
    path = os.environ.get(_ERROR_FILE)
    return reported_causes(Path(path).parent.parent) if path else []


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
