"""The trainer's side of the shippers: starting them, restarting them, and ending them in time.

Nothing here waits for a tracker but `Fleet.check`, before the training, and `Fleet.finish`, after it,
both with a time limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fmstune.delivery.journal import FILE_NAME, last_seq
from fmstune.delivery.ledger import TRACKING_DIR, Ledger, load_ledger
from fmstune.delivery.redaction import Redactor, is_secret_key
from fmstune.delivery.shipper import EXIT_BUSY, EXIT_DONE
from fmstune.trackers.base import Check

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_WATCH_SECONDS = 0.25
_LOOK_SECONDS = 2.0
_STALLED_SECONDS = 60.0
"""A shipper that has had something to deliver for so long without delivering it is started again."""
_MOST_MEMORY = 2 << 30
"""Bytes that a shipper may hold (SDKs take 100 to 300 MB); one that leaks more is started again."""


@dataclass(frozen=True, slots=True)
class Job:
    """Which tracker a shipper is for. `options` may hold secrets, so a job is never written to disk."""

    name: str
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cwd: str | None = None


class ShipperProcess:
    """One shipper process, from its start to its end."""

    def __init__(self, job: Job, *, check_within: float | None) -> None:
        """Start the process; with `check_within` (seconds) it begins by checking the tracker."""
        self.job = job
        self.in_process = False
        self.repeated_steps = "kept"
        self._began = time.monotonic()
        self._timeout = check_within
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fmstune.delivery.shipper", job.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=job.cwd,
            env=_environment(),
        )
        self._send(
            {
                "name": job.name,
                "reference": job.reference,
                "options": dict(job.options),
                "check": check_within is not None,
                "timeout": check_within,
                "parent": os.getpid(),
                "sys_path": [path or str(Path.cwd()) for path in sys.path],
            }
        )

    @property
    def pid(self) -> int:
        """The process id, which is also that of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How the process ended; `None` while it lives."""
        return self._process.poll()

    def memory(self) -> int:
        """The bytes of memory that the process holds; 0 when it has ended."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def check(self) -> Check:
        """The result of the check, waited for until its time limit is over.

        Afterwards `in_process` tells whether the tracker has to work in the training process, and
        `repeated_steps` what it does with steps that a resumed run logs again.
        """
        assert self._timeout is not None
        # Importing an SDK is not the service's time: it gets as long again, and a second to start.
        limit = self._began + 2 * self._timeout + 1 - time.monotonic()
        answer = self._read_line(limit)
        if answer is None:
            self.kill()
            return Check(
                "unreachable",
                f"no answer within {self._timeout:g} s",
                "try again, or give it longer: --set tracking.check_timeout=SECONDS",
            )
        if not answer:
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Check("broken", f"its process ended during the check ({how})", "install it again")
        message = json.loads(answer)
        self.in_process = bool(message["in_process"])
        self.repeated_steps = str(message["repeated_steps"])
        return Check(**message["check"])

    def ship(
        self, directory: Path, *, follow: bool, close_timeout: float, secrets: Sequence[str] = ()
    ) -> None:
        """Order the delivery of the run in `directory`; with `follow`, until its writer has ended."""
        order = {
            "directory": str(directory.resolve()),
            "follow": follow,
            "close_timeout": close_timeout,
        }
        self._send({**order, "secrets": list(secrets)})

    def wait(self, seconds: float) -> int | None:
        """The exit code, waited for at most so long; `None` if it still lives then."""
        try:
            return self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End the process and every process its SDK started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        # A process that has already died is noticed by its exit code, here as elsewhere.
        with contextlib.suppress(BrokenPipeError, ValueError):  # ValueError: its pipe is closed already
            self._process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            self._process.stdin.flush()

    def _read_line(self, seconds: float) -> bytes | None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            part = os.read(pipe, 65536)
            if not part:
                return b""
            line += part
        return line


@dataclass
class _Ship:
    process: ShipperProcess
    pause: float = _FIRST_PAUSE
    again_at: float | None = None
    delivered: int = -1
    moved_at: float = field(default_factory=time.monotonic)


class Fleet:
    """The shippers of one run: one for each tracker, kept going while the run lasts."""

    def __init__(self, jobs: Iterable[Job], *, check_within: float | None, close_timeout: float) -> None:
        """Start a process for each job. They import their SDKs while the caller imports torch."""
        self._close_timeout = close_timeout
        self._directory: Path | None = None
        self._secrets: tuple[str, ...] = ()
        self._ships = [_Ship(ShipperProcess(job, check_within=check_within)) for job in jobs]
        self._ending = threading.Event()
        self._watcher: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._ships)

    def check(self) -> dict[str, Check]:
        """What each tracker's check found, by name."""
        return {ship.process.job.name: ship.process.check() for ship in self._ships}

    def dismiss_in_process(self) -> list[Job]:
        """The jobs whose tracker has to work in the training process; their shippers are ended."""
        guests = [ship for ship in self._ships if ship.process.in_process]
        for ship in guests:
            ship.process.kill()
            self._ships.remove(ship)
        return [ship.process.job for ship in guests]

    def repeated_steps(self) -> dict[str, str]:
        """What each tracker does with steps that a resumed run logs again: `replaced` or `kept`."""
        return {ship.process.job.name: ship.process.repeated_steps for ship in self._ships}

    def sail(self, directory: Path, secrets: Sequence[str] = ()) -> None:
        """Begin the delivery of the run in `directory`."""
        self._directory, self._secrets = directory, tuple(secrets)
        redactor = Redactor(secrets=self._secrets)
        for ship in self._ships:
            job = ship.process.job
            if load_ledger(directory, job.name) is None:
                # Written here, so that a run knows its trackers however early their processes die.
                options = redactor.mapping(job.options)
                Ledger(job.name, job.reference, options, str(Path.cwd())).save(directory)
            self._order(ship)
        if self._ships:
            self._watcher = threading.Thread(target=self._watch, daemon=True, name="shippers")
            self._watcher.start()

    def finish(self) -> None:
        """Wait until everything is delivered, at most for the close timeout; then end what is left."""
        deadline = time.monotonic() + self._close_timeout
        self._ending.set()
        if self._watcher is not None:
            self._watcher.join()
        for ship in self._ships:
            if ship.process.exit_code not in (None, EXIT_DONE, EXIT_BUSY):
                self._restart(ship)  # one more try now, instead of at the end of its pause
        for ship in self._ships:
            ship.process.wait(deadline - time.monotonic())
        self.abandon()

    def abandon(self) -> None:
        """End all shippers at once; what they have not delivered waits in the journal."""
        self._ending.set()
        for ship in self._ships:
            ship.process.kill()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._ending.wait(_WATCH_SECONDS):
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                self._end_unwell()
            for ship in self._ships:
                if ship.process.exit_code in (None, EXIT_DONE, EXIT_BUSY):
                    continue
                now = time.monotonic()
                if ship.again_at is None:
                    ship.again_at = now + ship.pause
                    ship.pause = min(2 * ship.pause, _LONGEST_PAUSE)
                elif now >= ship.again_at:
                    self._restart(ship)

    def _end_unwell(self) -> None:
        """End shippers that hang, whose successors may find the service well, and those that leak, before
        they take the training's memory."""
        assert self._directory is not None
        total = last_seq(self._directory / TRACKING_DIR / FILE_NAME)
        for ship in self._ships:
            ledger = load_ledger(self._directory, ship.process.job.name)
            delivered = ledger.delivered if ledger else 0
            if ship.process.memory() > _MOST_MEMORY:
                ship.process.kill()
            elif delivered != ship.delivered or delivered >= total or ship.process.exit_code is not None:
                ship.delivered, ship.moved_at = delivered, time.monotonic()
            elif time.monotonic() - ship.moved_at > _STALLED_SECONDS:
                ship.process.kill()

    def _restart(self, ship: _Ship) -> None:
        ship.process.kill()
        ship.again_at, ship.moved_at = None, time.monotonic()
        ship.process = ShipperProcess(ship.process.job, check_within=None)
        self._order(ship)

    def _order(self, ship: _Ship) -> None:
        assert self._directory is not None
        ship.process.ship(
            self._directory, follow=True, close_timeout=self._close_timeout, secrets=self._secrets
        )


def secret_texts(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts in a tracker's options that are secrets, to be hidden wherever they turn up."""
    return tuple(value for key, value in options.items() if isinstance(value, str) and is_secret_key(key))


def _environment() -> dict[str, str]:
    # A shipper computes nothing: an OpenMP pool in it would only take cores from the training.
    # And wandb reports its own errors to a server unless told not to.
    return {"WANDB_ERROR_REPORTING": "false", **os.environ, "OMP_NUM_THREADS": "1"}
