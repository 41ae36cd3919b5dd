"""The trainer's side of the shippers: start them, restart them, and end them in time.

Only `Fleet.check`, before the training, and `Fleet.finish`, after it, wait for a tracker, both with a time
limit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmstune.delivery.journal.reader import last_seq
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.shipping.crashes import can_progress, note_death
from fmstune.delivery.shipping.main import EXIT_AGAIN, EXIT_BUSY, EXIT_DONE
from fmstune.delivery.shipping.process import Job, ShipperProcess
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import Check

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_WATCH_SECONDS = 0.25
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 2.0
_TEND_SECONDS = 0.5
_SETTLE_SECONDS = 1.0
"""The kernel accepts ten changes of priority per second from users other than root."""
_STALLED_SECONDS = 60.0
"""Seconds without progress, despite pending events, after which a shipper is restarted."""
_PAUSED_SECONDS = 2.0
"""The watch takes longer than this only if this process was stopped (Ctrl-Z), or its disk did not answer."""
_BEHIND_SECONDS = 10.0
"""Seconds without progress after which a shipper no longer gives way to the training, until it has caught
up: on a machine whose cores are all busy it gets so little that opening a run would take minutes."""
_MOST_MEMORY = 2 << 30
"""The memory in bytes that a shipper may use (SDKs take 100 to 300 MB); beyond it, it is restarted."""


@dataclass
class _Shipper:
    """One tracker's shipper; `ledger` is the last one that could be read, `noted` says that it records the
    process's death."""

    process: ShipperProcess
    pause: float = _FIRST_PAUSE
    again_at: float | None = None
    at: tuple[int, int] = (-1, -1)
    moved_at: float = field(default_factory=time.monotonic)
    delivered: int = 0
    ledger: Ledger | None = None
    noted: bool = False


class Fleet:
    """The shippers of one run: one for each tracker, kept running while the run lasts.

    They belong to the process that started them: in a forked child, nothing here has any effect.
    """

    def __init__(self, jobs: Iterable[Job], *, check_within: float | None, close_timeout: float) -> None:
        """Start a process for each job. They import their SDKs while the caller imports torch."""
        self._pid = os.getpid()
        self._close_timeout = close_timeout
        self._directory: Path | None = None
        self._tend: Callable[[], None] = lambda: None
        self._secrets: tuple[str, ...] = ()
        processes = [ShipperProcess(job, check_within=check_within, in_background=True) for job in jobs]
        self._ships = [_Shipper(process) for process in processes]
        self._ending = threading.Event()
        self._abandoned = False
        self._watcher: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._ships)

    @property
    def trackers(self) -> list[str]:
        """The names of the trackers that run in their own process."""
        return [ship.process.job.name for ship in self._ships]

    def check(self, longer: str = "--timeout SECONDS") -> dict[str, Check]:
        """The result of each tracker's check, by name; `longer` is the option that extends its time limit."""
        settled_by = time.monotonic() + _SETTLE_SECONDS
        # Nothing else can be done meanwhile.
        while not self._restore_priorities() and time.monotonic() < settled_by:
            time.sleep(_POLL_SECONDS)
        return {ship.process.job.name: ship.process.check(longer) for ship in self._ships}

    def dismiss_in_process(self) -> list[Job]:
        """The jobs whose tracker must run in the training process; their shippers are ended."""
        found = [ship for ship in self._ships if ship.process.in_process]
        for ship in found:
            ship.process.kill()
            self._ships.remove(ship)
        return [ship.process.job for ship in found]

    def repeated_steps(self) -> dict[str, str]:
        """What each tracker that answered does with steps that a resumed run logs again: `replaced` or
        `kept`."""
        found = {ship.process.job.name: ship.process.repeated_steps for ship in self._ships}
        return {name: steps for name, steps in found.items() if steps is not None}

    def start_delivery(
        self, directory: Path, secrets: Sequence[str] = (), tend: Callable[[], None] = lambda: None
    ) -> None:
        """Start the delivery of the run in `directory`. `tend` is called now and then to maintain its
        journal."""
        self._directory, self._secrets, self._tend = directory, tuple(secrets), tend
        redactor = Redactor(secrets=self._secrets)
        for ship in self._ships:
            self._name_tracker(ship, redactor)
            self._send_order(ship)
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="shippers")
        # The run also works without another thread: shippers that die are then restarted when it ends.
        with contextlib.suppress(RuntimeError):
            self._watcher.start()

    def finish(self) -> None:
        """Wait until everything is delivered, at most for the close timeout, then end the remaining ones."""
        if os.getpid() != self._pid:
            return
        deadline = time.monotonic() + self._close_timeout
        self._ending.set()
        for ship in self._ships if self._directory is not None else ():
            ship.process.end_of_training()
        if self._watcher is not None and self._watcher.is_alive():
            self._watcher.join(max(0.0, deadline - time.monotonic()))
        self._restore_priorities()
        for ship in self._ships:
            if ship.process.exit_code not in (None, EXIT_DONE):
                self._restart_at_end(ship)  # one more attempt now, instead of after its pause
        tended = time.monotonic()
        while time.monotonic() < deadline and self._any_delivers():
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - tended > _TEND_SECONDS:
                tended = time.monotonic()
                self._restore_priorities()  # one may have been about to give way
                self._tend()
        for ship in self._ships:
            with contextlib.suppress(OSError):  # the folder of the ledgers is closed, which the report says
                self._note_death(ship)
        self.abandon()

    def _restore_priorities(self) -> bool:
        settled = [ship.process.restore_priority() for ship in self._ships]
        return all(settled)

    def _any_delivers(self) -> bool:
        # Each is asked, and so restarted if necessary, whatever the others do.
        delivers = [self._still_delivers(ship) for ship in self._ships]
        return any(delivers)

    def _still_delivers(self, ship: _Shipper) -> bool:
        """Whether the shipper still delivers when the run ends, in a new process if necessary."""
        if ship.process.exit_code is None:
            return True
        try:
            return self._delivers_again(ship)
        except OSError:  # no room for another process, or no access to its ledger: the journal keeps the rest
            return False

    def _delivers_again(self, ship: _Shipper) -> bool:
        code = ship.process.exit_code
        if code in (EXIT_DONE, EXIT_BUSY) or ship.noted:
            return False
        assert self._directory is not None
        name = ship.process.job.name
        before = load_ledger(self._directory, name) or Ledger(name)
        self._note_death(ship)
        now = load_ledger(self._directory, name) or Ledger(name)
        died = ship.process.death is not None
        if code == EXIT_AGAIN or (died and can_progress(self._directory, before, now)):
            self._restart(ship)
            return True
        return False

    def _restart_at_end(self, ship: _Shipper) -> None:
        with contextlib.suppress(OSError):  # as in `_still_delivers`
            if ship.again_at is None:
                self._note_death(ship)
            self._restart(ship)

    def abandon(self) -> None:
        """End all shippers immediately; what they have not delivered waits in the journal."""
        if os.getpid() != self._pid:
            return
        self._ending.set()
        self._abandoned = True
        ends = [(ship.process, ship.process.terminate()) for ship in self._ships]  # all of them at once
        for process, by in ends:
            process.kill(by=by)

    def _watch(self) -> None:
        looked = seen = time.monotonic()
        while not self._ending.wait(_WATCH_SECONDS):
            look = time.monotonic() - looked > _LOOK_SECONDS
            if look:
                looked = time.monotonic()
                with contextlib.suppress(Exception):
                    self._tend()
            before, seen = seen, time.monotonic()
            if (paused := seen - before) > _PAUSED_SECONDS:
                for ship in self._ships:
                    ship.moved_at += paused  # its process had nothing to deliver meanwhile
            for ship in self._ships:
                if self._ending.is_set():  # this iteration may have taken longer than `finish` waits for it
                    return
                # Whatever it is (no file descriptors or memory left for some seconds, a ledger that is a
                # directory), it is temporary and concerns one tracker, and the next iteration may succeed.
                with contextlib.suppress(Exception):
                    if look:
                        self._end_if_unhealthy(ship)
                    self._keep_going(ship)

    def _keep_going(self, ship: _Shipper) -> None:
        # One that finds another process delivering is started again, too: that may be a `trackers sync`, or
        # its predecessor, which was killed and has not ended yet.
        if ship.process.exit_code in (None, EXIT_DONE):
            return
        now = time.monotonic()
        if ship.again_at is None:
            ship.again_at = now + ship.pause
            ship.pause = min(2 * ship.pause, _LONGEST_PAUSE)
            self._note_death(ship)
            if self._can_progress(ship):
                ship.again_at, ship.pause = now + _FIRST_PAUSE, _FIRST_PAUSE
        elif now >= ship.again_at:
            ship.again_at = now + ship.pause  # in case it cannot be started now
            self._restart(ship)

    def _end_if_unhealthy(self, ship: _Shipper) -> None:
        """End a shipper that hangs, as its successor may find the service working, or one that leaks,
        before it takes the training's memory."""
        assert self._directory is not None
        ledger = load_ledger(self._directory, ship.process.job.name)
        ship.ledger = ledger or ship.ledger
        delivered, trying = (ledger.delivered, ledger.trying) if ledger else (0, 0)
        longest = _STALLED_SECONDS + (ledger.patience if ledger else 0)
        if ship.process.memory() > _MOST_MEMORY:
            ship.process.kill()
            return
        total = last_seq(self._directory / TRACKING_DIR / JOURNAL_NAME)
        idle = delivered >= total and not trying
        if (delivered, trying) != ship.at or idle or ship.process.exit_code is not None:
            ship.at, ship.moved_at = (delivered, trying), time.monotonic()
            return
        behind = time.monotonic() - ship.moved_at
        if behind > longest:
            ship.process.kill(f"it did not return within {longest:.0f} s")
        elif behind > _BEHIND_SECONDS:
            ship.process.restore_priority()

    def _can_progress(self, ship: _Shipper) -> bool:
        """Whether to start a new process soon: this one asks for it, or has delivered something."""
        assert self._directory is not None
        ledger = load_ledger(self._directory, ship.process.job.name)
        before, ship.delivered = ship.delivered, ledger.delivered if ledger else 0
        return ship.process.exit_code == EXIT_AGAIN or ship.delivered > before

    def _note_death(self, ship: _Shipper) -> None:
        assert self._directory is not None
        self._restore_ledger(ship)
        if not ship.noted and (cause := ship.process.death) is not None:
            ship.noted = True
            note_death(self._directory, ship.process.job.name, cause)

    def _restore_ledger(self, ship: _Shipper) -> None:
        """Restore what is known of a deleted or damaged ledger: the tracker's run."""
        assert self._directory is not None
        if ship.ledger is not None and load_ledger(self._directory, ship.process.job.name) is None:
            with contextlib.suppress(OSError):
                ship.ledger.save(self._directory)

    def _restart(self, ship: _Shipper) -> None:
        ship.process.kill()
        self._restore_ledger(ship)
        in_background = not self._ending.is_set()
        ship.process = ShipperProcess(ship.process.job, check_within=None, in_background=in_background)
        ship.again_at, ship.moved_at, ship.noted = None, time.monotonic(), False
        if self._abandoned:  # by another thread meanwhile
            ship.process.kill()
            return
        self._send_order(ship)

    def _name_tracker(self, ship: _Shipper, redactor: Redactor) -> None:
        """Write the first ledger here, so that a run knows its trackers even if their processes die early."""
        assert self._directory is not None
        job = ship.process.job
        with contextlib.suppress(OSError):  # a full disk: the shipper writes its own, or `_restore_ledger`
            ship.ledger = load_ledger(self._directory, job.name)
            if ship.ledger is None:
                options = redactor.mapping(job.options)
                ship.ledger = Ledger(job.name, job.reference, options, str(Path.cwd()))
                ship.ledger.save(self._directory)

    def _send_order(self, ship: _Shipper) -> None:
        assert self._directory is not None
        ship.process.ship(
            self._directory,
            follow=True,
            close_timeout=self._close_timeout,
            secrets=self._secrets,
            during_training=not self._ending.is_set(),
        )
