"""One shipper process, from the side that starts it: the trainer or `trackers sync`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fmstune.delivery.shipping.main import EXIT_AGAIN, EXIT_BUSY, EXIT_DONE, EXIT_RETRY
from fmstune.delivery.shipping.own_exit import OwnExit
from fmstune.delivery.shipping.priority import restore_priority
from fmstune.delivery.shipping.quiet import environment
from fmstune.delivery.shipping.waiting import readable
from fmstune.secrets.redaction import Redactor, process_secrets, secret_texts
from fmstune.system.descendants import descendants
from fmstune.trackers.records import Check

FOREIGN = 256
"""Added to an exit code that a tracker chose."""
_MARK = "FMSTUNE_SHIPPER"
_SECONDS_TO_END = 8.0
"""Seconds for a supervisor to end its shipper before it counts as unable to."""
_SECONDS_TO_DIE = 1.0
"""Seconds for the kernel to end a process after SIGKILL: it stays while it waits for a disk."""
_SEND_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Job:
    """Which tracker a shipper is for. `options` may hold secrets, so a job is never written to disk.

    `cwd` is the directory that relative paths start from, `module_path` that of a plug-in's module when the
    run was tracked; without them, the current ones apply. `place` is where the run was stored then.
    """

    name: str
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cwd: str | None = None
    module_path: str = ""
    place: Mapping[str, str] = field(default_factory=dict)


class ShipperProcess:
    """One shipper process, from its start to its end.

    Nothing here waits for it to read: its order may be larger than a pipe, and an SDK may hang before it
    reads. What the pipe does not accept is buffered, and sent whenever the process is polled.
    """

    def __init__(self, job: Job, *, check_within: float | None, in_background: bool = False) -> None:
        """Start the process; with `check_within` (seconds) it begins by checking the tracker. With
        `in_background`, it does so at a low priority."""
        self.job = job
        self.in_process = False
        self.repeated_steps: str | None = None
        self._ended_here = self._has_order = self._training_ended = False
        self._hung: str | None = None
        self._began = time.monotonic()
        self._timeout = check_within
        self._mark = uuid.uuid4().hex  # in the environment of all processes that it starts
        self._ends = OwnExit()
        self._unsent = b""
        self._sending = threading.Lock()
        try:
            self._process = self._start(job, self._ends.theirs)
        finally:
            self._ends.close_theirs()
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._send(
            {
                "name": job.name,
                "reference": job.reference,
                "options": dict(job.options),
                "place": dict(job.place),
                "in_background": in_background,
                "check": check_within is not None,
                "timeout": check_within,
                "parent": os.getpid(),
                "sys_path": _search_path(job),
            }
        )

    def _start(self, job: Job, end: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fmstune.delivery.shipping.supervisor",
                job.name,
                str(os.getpid()),
                str(end),
            ],
            pass_fds=(end,),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=job.cwd,
            env=environment() | {_MARK: self._mark},
        )

    @property
    def pid(self) -> int:
        """The id of the shipper's supervisor, which ends when it ends."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How the process ended; `None` while it lives. An `EXIT_…` is fmstune's own: the same code of a
        tracker that has ended the process is `FOREIGN` higher."""
        code = self._process.poll()
        if code is None:
            self._send_on()
        return code if code is None or code < 0 or self._ends.is_own() else code + FOREIGN

    @property
    def death(self) -> str | None:
        """How the process died by itself; `None` while it lives, and if it was ended from here or finished by
        itself. A process that was ended because it hung counts as dead."""
        code = self.exit_code
        if self._hung is not None:
            return self._hung
        if self._ended_here or code in (None, EXIT_DONE, EXIT_RETRY, EXIT_AGAIN, EXIT_BUSY):
            return None
        return f"its process {_describe_death(code)}"

    def memory(self) -> int:
        """The memory in bytes of the process and those of its SDK; 0 when it has ended."""
        held = 0
        for process in descendants(self.pid):
            with contextlib.suppress(psutil.Error):
                held += int(psutil.Process(process).memory_info().rss)
        return held

    def check(self, longer: str = "--timeout SECONDS") -> Check:
        """Wait for the result of the check, until its time limit; `longer` is the option that extends it.

        Afterwards `in_process` tells whether the tracker must run in the training process, and
        `repeated_steps` what it does with steps that a resumed run logs again, if it answered.
        """
        assert self._timeout is not None
        # Importing an SDK does not count as the service's time: as long again, and a second to start.
        limit = self._began + 2 * self._timeout + 1 - time.monotonic()
        answer = self._read_line(limit)
        if answer is None:
            self.kill()
            late = f"no answer within {self._timeout:g} s"
            return Check("unreachable", late, f"try again, or give it longer: {longer}")
        if not answer:
            how = _describe_death(self._process.wait())
            return Check("crashed", f"its process {how} during the check", "try again, or install it again")
        message = json.loads(answer)
        redactor = Redactor(secrets=secret_texts(self.job.options))
        self.in_process = bool(message["in_process"])
        self.repeated_steps = str(message["repeated_steps"])
        return Check(**{key: redactor.value(item) for key, item in message["check"].items()})

    def ship(
        self,
        directory: Path,
        *,
        follow: bool,
        close_timeout: float,
        secrets: Sequence[str] = (),
        forgive: bool = False,
        look: bool = False,
        during_training: bool = False,
    ) -> None:
        """Order the delivery of the run in `directory`; with `follow`, until its writer has ended. `secrets`
        are hidden in all that it writes, as are those of its options and those that this process knows.
        For `forgive` see `Delivery`. With `look`, it delivers nothing, and only sees whether a run that is
        complete is still there. With `during_training`, it runs at a lower priority than the training."""
        order = {
            "directory": str(directory.resolve()),
            "follow": follow,
            "close_timeout": close_timeout,
            "forgive": forgive,
            "look": look,
            "during_training": during_training,
        }
        known = [*secrets, *process_secrets(), *secret_texts(self.job.options)]
        self._send({**order, "secrets": list(dict.fromkeys(known))})
        self._has_order = True
        if self._training_ended:  # another thread has said so meanwhile
            self._send({"training": "ended"})

    def end_of_training(self) -> None:
        """Tell it, once it has its order, that the journal gets no more: what is left is to be delivered."""
        self._training_ended = True
        if self._has_order:
            self._send({"training": "ended"})

    def restore_priority(self) -> bool:
        """Have it run at the priority of this process; `False`: call this again a moment later."""
        return restore_priority(descendants(self.pid))

    def wait(self, seconds: float) -> int | None:
        """Wait for the exit code, at most this long; `None` if it is still alive then."""
        deadline = time.monotonic() + max(0.0, seconds)
        while True:
            self._send_on()
            left = max(0.0, deadline - time.monotonic())
            try:
                self._process.wait(min(left, _SEND_SECONDS) if self._unsent else left)
            except subprocess.TimeoutExpired:
                if time.monotonic() >= deadline:
                    return None
            else:
                return self.exit_code

    def terminate(self, hung: str | None = None) -> float:
        """Have the supervisor end everything, and return the moment, of the monotonic clock, at which that
        has taken it too long. `hung` says so if that is why."""
        if self.exit_code is None:
            self._ended_here, self._hung = True, hung
        self._unsent = b""
        self._process.terminate()
        if hasattr(signal, "SIGCONT"):  # a stopped process receives no other signal
            self._process.send_signal(signal.SIGCONT)
        return time.monotonic() + _SECONDS_TO_END

    def kill(self, hung: str | None = None, by: float | None = None) -> None:
        """End the process and every process its SDK started, at once; `terminate` has said until when, if it
        was called before."""
        until = self.terminate(hung) if by is None else by
        if self.wait(until - time.monotonic()) is None:
            for process in (*self._descendants(), self._process):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.wait(_SECONDS_TO_DIE)
        if self._process.returncode == -signal.SIGKILL:  # its supervisor has ended nothing
            self._end_orphans()
        self._ends.is_own()  # closes its pipe
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _end_orphans(self) -> None:
        """End what a killed supervisor left behind: an SDK's daemons have no parent."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark:
                    process.kill()

    def _descendants(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self.pid).children(recursive=True))
        except psutil.Error:
            return []

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._sending:
            self._unsent += json.dumps(message, default=str).encode() + b"\n"
        self._send_on()

    def _send_on(self) -> None:
        """Write as much of what is unsent as the pipe has room for."""
        if not self._unsent or not self._sending.acquire(blocking=False):
            return  # or another thread is sending
        try:
            assert self._process.stdin is not None
            while written := self._process.stdin.write(self._unsent):
                self._unsent = self._unsent[written:]
                if not self._unsent:
                    break
        except (OSError, ValueError):  # it died, which its exit code reports; or its pipe is already closed
            self._unsent = b""
        finally:
            self._sending.release()

    def _read_line(self, seconds: float) -> bytes | None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            self._send_on()
            left = deadline - time.monotonic()
            if not readable([pipe], min(left, _SEND_SECONDS) if self._unsent else left):
                if time.monotonic() < deadline:
                    continue
                return None
            part = os.read(pipe, 65536)
            if not part:
                return b""
            line += part
        return line


def is_of_environment(folder: str) -> bool:
    """Whether packages are installed into this folder: it may be that of another environment."""
    return Path(folder).name in ("site-packages", "dist-packages")


def _search_path(job: Job) -> list[str]:
    """The module search path of the shipper: that of this process, then where a plug-in was when the run was
    tracked, before the current directory, where another module may have its name."""
    here = str(Path.cwd())
    paths = [path or here for path in sys.path]
    given = (job.module_path, job.cwd)
    earlier = [path for path in given if path and path not in paths and not is_of_environment(path)]
    if not earlier or here not in paths:
        return [*paths, *earlier]
    return [*(path for path in paths if path != here), *earlier, here]


def _describe_death(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code % FOREIGN}"
