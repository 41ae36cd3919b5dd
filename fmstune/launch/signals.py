"""Pass signals from the launcher of several processes on to the ranks, which handle them."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from fmstune.errors import Interrupted
from fmstune.launch.rank import is_training, note_stop

_SECONDS_TO_HANDLE_FIRST = 5
_SECONDS_TO_HANDLE = 0.5
"""From the kernel's handler to Python's, which runs between two bytecode instructions. On a busy machine a
rank waits for a processor then."""
_SECONDS_TO_LEAVE = 60
"""For processes that remain after torchrun, so that their trackers can finish."""


@contextlib.contextmanager
def forwarded(folder: Path) -> Iterator[None]:
    """Pass SIGINT, SIGTERM and SIGHUP on to the ranks, which report to `folder`, and leave none of them
    behind."""
    before = listen(folder)
    try:
        yield
    finally:
        end_remaining_ranks()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def listen(folder: Path) -> dict[signal.Signals, Any]:
    """Pass SIGINT, SIGTERM and SIGHUP on to the ranks: the first through torchrun, which waits for them to
    exit, and kills them only if they have not even begun to train.

    The second SIGINT goes to them directly; the third kills them. Before there are ranks, a signal ends this
    process: the first process of a container has no default handlers. Returns the previous handlers.
    """
    count = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        ranks = psutil.Process().children()
        if not ranks:
            raise Interrupted(signum)
        note_stop(folder)
        if count == 1:
            from torch.distributed.elastic.multiprocessing.api import SignalException

            if not is_training(folder):
                threading.Thread(target=end_if_stuck, args=(ranks, folder), daemon=True).start()
            raise SignalException(f"got {signum}", sigval=signal.Signals(signum))
        if count == 2:
            # In a thread: this may interrupt torchrun while it passes the first on, rank by rank. A rank that
            # it has not reached would get both at once, which the kernel merges.
            threading.Thread(target=_send_once_handled, args=(signum, ranks), daemon=True).start()
            return
        _send(signal.SIGKILL if count > 2 and signum == signal.SIGINT else signum, ranks)

    return {signum: signal.signal(signum, handle) for signum in _signals_to_forward()}


def signals_for_torchrun() -> str:
    """The other signals, for torchrun's `--signals-to-handle`."""
    return "SIGQUIT"


def _signals_to_forward() -> list[signal.Signals]:
    # After `nohup`, the end of the terminal does not matter.
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


def end_remaining_ranks() -> None:
    """End ranks that torchrun does not know: those that were being started when a signal arrived."""
    left = psutil.Process().children()
    _send(signal.SIGTERM, left)
    _send(signal.SIGKILL, psutil.wait_procs(left, timeout=_SECONDS_TO_LEAVE)[1])


def end_if_stuck(ranks: Sequence[psutil.Process], folder: Path, seconds: float = _SECONDS_TO_LEAVE) -> None:
    """Kill ranks that remain after so many seconds, unless their training has begun. One that waits for
    another while torch's process group is made cannot handle a signal, and the other may have ended."""
    until = time.monotonic() + seconds
    while any(map(_is_alive, ranks)):
        if is_training(folder):
            return
        if time.monotonic() >= until:
            _send(signal.SIGKILL, ranks)
            return
        time.sleep(0.1)


def _is_alive(process: psutil.Process) -> bool:
    # Not by waiting for it: torchrun, whose child it is, would miss its exit code.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _send_once_handled(signum: int, ranks: Sequence[psutil.Process]) -> None:
    _wait_until_handled(signum, ranks)
    _send(signum, ranks)


def _wait_until_handled(signum: int, processes: Sequence[psutil.Process]) -> None:
    """Wait until the processes have handled an earlier signal: the kernel merges two pending ones, and a rank
    would miss the second. Only Linux tells."""
    until = time.monotonic() + _SECONDS_TO_HANDLE_FIRST
    for process in processes:
        while time.monotonic() < until and _is_pending(signum, process.pid):
            time.sleep(0.01)
    time.sleep(_SECONDS_TO_HANDLE)


def _is_pending(signum: int, pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (signum - 1) & 1 for mask in masks)


def _send(signum: int, processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)
