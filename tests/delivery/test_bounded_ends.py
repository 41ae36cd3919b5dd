"""The end of a run has a deadline, whatever shippers, pipes and files do."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fmstune.delivery.journal.reader import JournalError, JournalReader
from fmstune.delivery.ledger import ledger_path, load_ledger
from fmstune.delivery.place import original_of
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.layout import PLACE_NAME, TRACKING_DIR
from fmstune.system import locks
from tests.support.journals import journal_path, open_journal
from tests.support.shipping import job, record_steps, steps_in
from tests.support.waiting import wait_for

LARGE = tuple(f"{number}-secret-{'x' * 1000}" for number in range(150))
"""More than the buffer of a pipe holds."""


def within(seconds: float, call: Callable[[], object]) -> None:
    """Call, and fail if that takes longer: a call that never returns would block the test."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"it did not return within {seconds} s"


def test_secrets_larger_than_a_pipe_do_not_block_a_training_when_a_tracker_hangs_at_import(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    module = tmp_path / "hangs_at_import.py"
    module.write_text("import time\ntime.sleep(1000)\n")
    made = Job("hangs", "hangs_at_import:Mine", module_path=str(tmp_path), options={"note": "y" * 100_000})
    fleet = Fleet([made], check_within=None, close_timeout=1)
    within(20, lambda: fleet.start_delivery(run_directory, secrets=LARGE))
    fleet._ships[0].process.kill()  # so that the watcher starts another one, which also hangs
    wait_for(lambda: fleet._ships[0].again_at is not None or fleet._ships[0].process.exit_code is None)
    recorder.close("finished")
    within(30, fleet.finish)


def test_secrets_larger_than_a_pipe_arrive(recorder: Recorder, run_directory: Path, tmp_path: Path) -> None:
    fleet = Fleet([job(tmp_path / "c", api_key="y" * 100_000)], check_within=300, close_timeout=300)
    assert fleet.check()["collector"].ok
    fleet.start_delivery(run_directory, secrets=LARGE)
    record_steps(recorder, 1, 3)
    recorder.close("finished")
    fleet.finish()
    assert steps_in(tmp_path / "c") == [1, 2, 3]


def test_a_blocked_watcher_does_not_block_the_end(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    held, free = threading.Event(), threading.Event()

    def tend() -> None:
        if threading.current_thread().name == "shippers":
            held.set()
            free.wait()

    fleet = Fleet([job(tmp_path / "c")], check_within=None, close_timeout=1)
    fleet.start_delivery(run_directory, tend=tend)
    wait_for(held.is_set)
    recorder.close("finished")
    try:
        within(30, fleet.finish)
    finally:
        free.set()


def test_stopped_supervisors_and_shippers_end_together(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    made = [Job(f"c{number}", job(tmp_path / f"{number}").reference, {"path": str(tmp_path / f"{number}")})
            for number in range(3)]  # fmt: skip
    fleet = Fleet(made, check_within=None, close_timeout=0.5)
    fleet.start_delivery(run_directory)
    wait_for(lambda: all(load_ledger(run_directory, each.name) for each in made))
    stopped = [psutil.Process(ship.process.pid) for ship in fleet._ships]
    wait_for(lambda: all(process.children() for process in stopped))
    stopped += [child for process in stopped for child in process.children(recursive=True)]
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
    recorder.close("finished")
    began = time.monotonic()
    fleet.finish()
    assert time.monotonic() - began < 20  # one after the other, they would take 8 s each
    assert not any(process.is_running() for process in stopped)


@pytest.fixture
def pipe_at() -> Callable[[Path], None]:
    def put(path: Path) -> None:
        made = path.with_name(path.name + ".pipe")
        os.mkfifo(made)
        made.replace(path)

    return put


def test_a_ledger_that_is_a_pipe_is_moved_aside_and_everything_arrives(
    recorder: Recorder, run_directory: Path, tmp_path: Path, pipe_at: Callable[[Path], None]
) -> None:
    fleet = Fleet([job(tmp_path / "c")], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 3)
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 2, 3])
    pipe_at(ledger_path(run_directory, "collector"))
    record_steps(recorder, 4, 6)
    recorder.close("finished")
    within(400, fleet.finish)
    assert steps_in(tmp_path / "c")[-3:] == [4, 5, 6]
    within(60, lambda: report(run_directory, ["collector"]))


def test_no_file_of_a_run_blocks_if_it_is_a_pipe(
    run_directory: Path, tmp_path: Path, pipe_at: Callable[[Path], None]
) -> None:
    tracking = run_directory / TRACKING_DIR
    (run_directory / "checkpoint-1" / TRACKING_DIR).mkdir(parents=True)
    tracking.mkdir(parents=True, exist_ok=True)
    for path in (
        ledger_path(run_directory, "file"),
        ledger_path(run_directory / "checkpoint-1", "file"),
        tracking / PLACE_NAME,
        journal_path(run_directory),
        tracking / "some.lock",
    ):
        pipe_at(path)
    within(60, lambda: load_ledger(run_directory, "file"))
    within(60, lambda: original_of(run_directory))
    within(60, lambda: locks.holder(tracking / "some.lock"))
    within(60, lambda: locks.acquire(tracking / "some.lock"))

    def read() -> None:
        with pytest.raises((OSError, JournalError)):
            JournalReader(journal_path(run_directory))

    within(60, read)
    within(60, lambda: Recorder(open_journal(run_directory)).close("finished"))
    assert JournalReader(journal_path(run_directory)).read()[-1][0].status == "finished"


def test_a_journal_that_becomes_a_pipe_during_the_run_is_rewritten(
    recorder: Recorder, run_directory: Path, tmp_path: Path, pipe_at: Callable[[Path], None]
) -> None:
    fleet = Fleet([job(tmp_path / "c")], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory, tend=recorder.journal.tend)
    record_steps(recorder, 1, 3)
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 2, 3])
    pipe_at(journal_path(run_directory))
    record_steps(recorder, 4, 6)
    recorder.close("finished")
    within(400, fleet.finish)
    assert steps_in(tmp_path / "c") == [1, 2, 3, 4, 5, 6]
