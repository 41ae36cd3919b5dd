"""The small parent of a shipper, which ends it in time, with all processes that it started.

`python -m fmstune.delivery.shipping.supervisor NAME TRAINER END` forks: the child is the shipper, this
process watches. A deadline cannot live in the process that it ends: a hanging SDK may hold the GIL, and
then no thread and no Python signal handler runs there. Nor can the trainer enforce it, as it may be killed.
So this process imports hardly anything but the standard library, and only waits.

It ends as the shipper ends. A tracker may end the shipper with any exit code, so fmstune's own codes only
count if the shipper recorded them first: then a byte is written to the pipe END.

On Linux it adopts the shipper's orphans, so that a daemon that has left its session also ends with it, and
the shipper ends when this process is killed. Elsewhere there is no PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG
or /proc: the shipper's process group is ended there, and a daemon may remain.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from fmstune.delivery.shipping.priority import restore_priority
from fmstune.delivery.shipping.watch import TrainerWatch

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK_SECONDS = 0.5
_SECONDS_TO_REAP = 5.0
_SECONDS_TO_READ = 3.0
"""The log reader ends by itself; this is its time limit for the shipper's last output."""


def main() -> NoReturn:
    """Fork the shipper, and end as it ends."""
    trainer, end = map(int, sys.argv[2:])
    watch = TrainerWatch()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    ordered: list[int] = []
    wakes, woken = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(woken, False)
    before = {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda signum, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda signum, frame: ordered.append(signum)),
        # Batch systems send these to all processes of a job; the trainer decides when it is over.
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    }
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    supervisor = os.getpid()
    shipper = os.fork()
    if shipper == 0:
        signal.set_wakeup_fd(-1)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(wakes)
        os.close(woken)
        os.close(end)
        _ship(watch, supervisor)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # the shipper's: its end closes these pipes
        os.dup2(nowhere, stream)
    _supervise(shipper, trainer, watch, ordered, wakes, end)


def _ship(watch: TrainerWatch, supervisor: int) -> NoReturn:
    os.setsid()  # signals to its own process group do not reach its supervisor
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)
    from fmstune.delivery.shipping import main as shipper

    code = shipper.main(watch)
    watch.note_end(code)
    sys.exit(code)


def _supervise(
    shipper: int, trainer: int, watch: TrainerWatch, ordered: list[int], wakes: int, end: int
) -> NoReturn:
    gone_at: float | None = None
    while True:
        status = _reap(shipper)
        if status is not None:
            _end_all(shipper, watch.log_reader)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == watch.end:
                with contextlib.suppress(OSError):  # the trainer is gone
                    os.write(end, b"\n")
            _end_as(status)
        if gone_at is None and os.getppid() != trainer:
            gone_at = time.monotonic()
            watch.note_gone()
        if gone_at is not None:  # the shipper gave way to a training that has ended, or does so just now
            restore_priority(_descendants())
        if ordered or (gone_at is not None and time.monotonic() >= watch.ends_at(gone_at)):
            _end_all(shipper, watch.log_reader)
            _end_as(signal.SIGTERM)
        select.select([wakes], [], [], _LOOK_SECONDS)
        with contextlib.suppress(BlockingIOError):
            os.read(wakes, 4096)


def _reap(shipper: int) -> int | None:
    """Reap ended processes, including adopted orphans; return the shipper's status if it was one."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == shipper:
                found = status
            if pid == 0:
                break
    return found


def _end_all(shipper: int, log_reader: int) -> None:
    """End the shipper and all its descendants; in rounds, as processes may fork meanwhile."""
    began = time.monotonic()
    if log_reader:  # a stopped one reads nothing, and would be waited for
        with contextlib.suppress(OSError):
            os.kill(log_reader, signal.SIGCONT)
    while (passed := time.monotonic() - began) < _SECONDS_TO_REAP:
        with contextlib.suppress(OSError):
            os.killpg(shipper, signal.SIGKILL)
        for pid in _descendants() - ({log_reader} if passed < _SECONDS_TO_READ else set()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _descendants() -> set[int]:
    """All descendants of this process, by the parents in /proc."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    stat = (folder / "stat").read_bytes()
                    children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(int(folder.name))
    found: set[int] = set()
    ahead = [os.getpid()]
    while ahead:
        new = [pid for pid in children.get(ahead.pop(), ()) if pid not in found]
        found.update(new)
        ahead += new
    return found


def _end_as(status: int) -> NoReturn:
    """End with the exit code, or by the signal, of this wait status."""
    if os.WIFSIGNALED(status):
        import resource

        signum = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the shipper has dumped its own
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler to reset
            signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not on Linux
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
