"""Signal handlers may track at any moment of a write."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fmstune
from fmstune.delivery.journal import file, writer
from fmstune.delivery.journal.reader import JournalReader, last_event
from fmstune.delivery.recorder import Recorder, active
from fmstune.report.replay import replay
from tests.support.journals import journal_path, open_journal
from tests.support.moments import acting
from tests.support.waiting import wait_for


class Monitor:
    """Tracks from the signal of a timer, and counts its samples.

    Each sample sets the timer for the next one: a timer that goes on alone would leave a slow machine no time
    between two handlers."""

    def __init__(self, every: float) -> None:
        self.samples = 0
        self._every, self._ended = every, False

    def start(self) -> None:
        """Set the timer."""
        signal.setitimer(signal.ITIMER_REAL, self._every)

    def sample(self, signum: int, frame: object) -> None:
        """Handle the signal."""
        self.samples += 1
        fmstune.track(1.0, "sample")
        if not self._ended:
            self.start()

    def end(self) -> None:
        """Stop the timer."""
        self._ended = True
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def monitoring(every: float, *, at_once: bool = True) -> Iterator[Monitor]:
    """A monitor, in the place of the timer of the test's time limit."""
    monitor = Monitor(every)
    limit = signal.setitimer(signal.ITIMER_REAL, 0)
    before = signal.signal(signal.SIGALRM, monitor.sample)
    try:
        if at_once:
            monitor.start()
        yield monitor
    finally:
        monitor.end()
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *limit)


def recorded(directory: Path) -> Counter[str]:
    events = list(JournalReader(journal_path(directory)))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return Counter(name for event in events for name in event.values)


def test_a_monitor_whose_signals_interrupt_writes_neither_stops_the_training_nor_loses_samples(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = recorder.journal._file.put

    def slow(body: bytes, now: float) -> int:
        if b"loss" in body:
            time.sleep(0.02)
        return put(body, now)

    monkeypatch.setattr(recorder.journal._file, "put", slow)
    with active(recorder), monitoring(0.001) as monitor:
        for _ in range(50):
            fmstune.track(1.0, "loss")
    recorder.journal.tend()
    assert monitor.samples > 50
    assert recorded(run_directory) == {"loss": 50, "sample": monitor.samples}
    assert recorder.journal.unrecorded == 0


def test_signals_that_arrive_while_another_thread_writes_are_queued(
    recorder: Recorder, run_directory: Path
) -> None:
    main, held = threading.get_ident(), threading.Event()

    def hold() -> None:
        with recorder.journal._lock:
            held.set()
            wait_for(lambda: main in recorder.journal._inside)
            monitor.start()  # not before: a handler that waits here while `main` holds a lock of this thread
            wait_for(lambda: monitor.samples > 20)

    with active(recorder), monitoring(0.0005, at_once=False) as monitor:
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        fmstune.track(1.0, "loss")
    thread.join()
    recorder.journal.tend()
    assert recorded(run_directory) == {"loss": 1, "sample": monitor.samples}


def test_what_a_handler_tracks_is_bounded_and_dropped_events_are_counted(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.journal.writer._MOST_WAITING", 1000)
    put = recorder.journal._file.put

    def interrupted(body: bytes, now: float) -> int:
        if b"loss" in body:
            for _ in range(100):
                os.kill(os.getpid(), signal.SIGUSR1)
        return put(body, now)

    monkeypatch.setattr(recorder.journal._file, "put", interrupted)
    before = signal.signal(signal.SIGUSR1, lambda *_: fmstune.track(1.0, "sample"))
    try:
        with active(recorder):
            fmstune.track(1.0, "loss")
    finally:
        signal.signal(signal.SIGUSR1, before)
    kept = recorded(run_directory)
    assert kept["loss"] == 1
    assert 0 < kept["sample"] < 100
    assert kept["sample"] + recorder.journal.unrecorded == 100


def test_what_a_handler_tracks_while_the_status_is_written_does_not_follow_it(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = recorder.journal._file.put

    def slow(body: bytes, now: float) -> int:
        if b"finished" in body:
            time.sleep(0.02)
        return put(body, now)

    monkeypatch.setattr(recorder.journal._file, "put", slow)
    with active(recorder), monitoring(0.001) as monitor:
        recorder.close("finished")
        recorder.journal.close()
    last = last_event(journal_path(run_directory))
    assert last is not None
    assert last.kind == "status"
    kept = recorded(run_directory)["sample"]
    assert recorder.journal.unrecorded == recorder.journal.late == monitor.samples - kept > 0


class Left(BaseException):
    """What the handler of a signal raises: a second Ctrl-C, or the time limit of a user's function."""


def leave() -> None:
    raise Left


def test_an_exception_of_a_handler_at_any_line_of_a_write_leaves_later_events_their_own_numbers(
    tmp_path: Path,
) -> None:
    for moment in itertools.count(1):
        (tmp_path / f"{moment}/tracking").mkdir(parents=True)
        journal = open_journal(tmp_path / f"{moment}")
        with contextlib.suppress(Left), acting(moment, leave, file, writer) as left:
            journal.append("metrics", {"step": 1, "values": {"loss": 1.0}})
        journal.append("metrics", {"step": 2, "values": {"loss": 1.0}})
        journal.append("status", {"status": "interrupted"})
        journal.close()
        found = replay(journal_path(tmp_path / f"{moment}"))
        assert (found.status, found.repeated, found.missing, found.damaged) == ("interrupted", 0, 0, 0), left
        assert found.events == journal.last_seq in (2, 3)
        if not left:
            break
    assert moment > 20


def test_a_child_killed_at_any_line_of_a_write_leaves_later_events_their_own_numbers(tmp_path: Path) -> None:
    for moment in itertools.count(1):
        (tmp_path / f"{moment}/tracking").mkdir(parents=True)
        journal = open_journal(tmp_path / f"{moment}")
        child = os.fork()
        if child == 0:
            with acting(moment, lambda: os._exit(1), file, writer):
                journal.append("metrics", {"step": 1, "values": {"loss": 1.0}})
            os._exit(0)
        killed = os.waitpid(child, 0)[1]
        journal.append("metrics", {"step": 2, "values": {"loss": 1.0}})
        journal.close()
        found = replay(journal_path(tmp_path / f"{moment}"))
        assert (found.events, found.repeated, found.missing) == (found.newest, 0, 0), moment
        assert found.newest in (1, 2)
        if not killed:
            break
    assert moment > 20
