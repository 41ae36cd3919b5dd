"""Supervision of shippers: nothing that a tracker does outlives them, or keeps them from ending."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.ledger import Ledger, ledger_path, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.main import EXIT_BUSY, EXIT_DONE
from fmstune.delivery.shipping.process import ShipperProcess
from fmstune.delivery.shipping.progress import RunRemoved
from fmstune.system import locks
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint
from tests.support.journals import journal_path
from tests.support.made_runs import end_run, start_run
from tests.support.shipping import alive, deliver, job, record_steps, start_trainer, steps_in
from tests.support.waiting import wait_for


def daemons(path: Path) -> list[int]:
    file = path.with_name(path.name + ".daemons")
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_tracker_that_hangs_while_holding_the_gil_is_ended_though_its_trainer_was_killed(
    run_directory: Path, tmp_path: Path
) -> None:
    options = {"path": str(tmp_path / "c"), "fault": "hang_in_c", "at": "track"}
    trainer, supervisor = start_trainer(run_directory, options)
    wait_for(lambda: len((tmp_path / "c").read_text().splitlines()) if (tmp_path / "c").exists() else 0)
    (shipper,) = psutil.Process(supervisor).children()
    trainer.kill()
    trainer.wait()
    wait_for(lambda: not alive(supervisor) and not alive(shipper.pid))
    assert locks.holder(ledger_path(run_directory, "collector").with_suffix(".lock")) is None
    assert len(list(JournalReader(journal_path(run_directory)))) == 20


@pytest.mark.parametrize("end", ["finish", "trainer killed", "supervisor killed"])
def test_a_daemon_of_a_tracker_locks_no_ledger_and_ends_with_its_shipper(
    end: str, run_directory: Path, tmp_path: Path
) -> None:
    options = {"path": str(tmp_path / "c"), "fault": "daemon", "at": "open"}
    trainer, supervisor = start_trainer(run_directory, options)
    wait_for(lambda: len(steps_in(tmp_path / "c")) == 20)
    (daemon,) = daemons(tmp_path / "c")
    assert alive(daemon)
    if end == "supervisor killed":  # then the process that starts the next shipper ends what is left
        shipper = psutil.Process(supervisor).children()[0].pid
        os.kill(supervisor, signal.SIGKILL)
        wait_for(lambda: not alive(shipper) and not alive(daemon))
        trainer.kill()
    else:
        trainer.send_signal(signal.SIGKILL if end == "trainer killed" else signal.SIGTERM)
    trainer.wait()
    wait_for(lambda: not alive(daemon) and not alive(supervisor))
    assert locks.holder(ledger_path(run_directory, "collector").with_suffix(".lock")) is None


def test_processes_that_a_tracker_started_end_with_it(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    deliver(recorder, run_directory, job(tmp_path / "c", fault="daemon", at="track"))
    assert len(daemons(tmp_path / "c")) == 10
    assert not any(map(alive, daemons(tmp_path / "c")))
    assert report(run_directory, ["collector"])[0].state == "complete"


def test_a_shipper_without_a_job_ends_with_the_process_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipper = ShipperProcess(job(tmp_path / "c"), check_within=300)
    assert shipper.check().ok
    (process,) = psutil.Process(shipper.pid).children()
    assert shipper.memory() > 10_000_000
    shipper.kill()
    assert not alive(process.pid)
    assert shipper.death is None


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_supervisor_reports_how_a_shipper_died(signum: signal.Signals, tmp_path: Path) -> None:
    shipper = ShipperProcess(job(tmp_path / "c"), check_within=300)
    assert shipper.check().ok
    psutil.Process(shipper.pid).children()[0].send_signal(signum)
    assert shipper.wait(300) == -signum
    assert shipper.death == f"its process died of {signum.name}"
    shipper.kill()


def test_supervision_survives_seconds_without_free_file_descriptors(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.05)
    monkeypatch.setattr("fmstune.delivery.shippers._WATCH_SECONDS", 0.02)
    monkeypatch.setattr("fmstune.delivery.shippers._LONGEST_PAUSE", 0.1)
    fleet = Fleet([job(tmp_path / "c")], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 3)
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 2, 3])
    with _no_descriptors():
        fleet._ships[0].process._process.kill()
        time.sleep(0.6)  # the watcher looks, and tries to restart it
    record_steps(recorder, 4, 6)
    # A step that had arrived but was not yet in the ledger at the kill is delivered again.
    wait_for(lambda: set(steps_in(tmp_path / "c")) == set(range(1, 7)))
    assert fleet._watcher is not None
    assert fleet._watcher.is_alive()
    recorder.close("finished")
    fleet.finish()
    assert report(run_directory, ["collector"])[0].state == "complete"


def test_a_tracker_that_is_restarted_while_the_training_ends_gets_its_order_first(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 3)
    recorder.close("finished")
    shipper = ShipperProcess(job(tmp_path / "c"), check_within=None)
    shipper.end_of_training()  # by the training's thread, just before the watching one sends the order
    shipper.ship(run_directory, follow=True, close_timeout=300, during_training=True)
    assert shipper.wait(300) == EXIT_DONE
    shipper.kill()
    assert steps_in(tmp_path / "c") == [1, 2, 3]


@pytest.mark.parametrize("released", ["during the training", "at its end"])
def test_a_tracker_that_another_process_delivers_to_is_delivered_to_once_that_has_ended(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: str
) -> None:
    """A `trackers sync` beside the training, or the last shipper, which was killed and has not ended yet."""
    monkeypatch.setattr("fmstune.delivery.shippers._WATCH_SECONDS", 0.02)
    monkeypatch.setattr("fmstune.delivery.shippers._FIRST_PAUSE", 0.05)
    monkeypatch.setattr("fmstune.delivery.shippers._LONGEST_PAUSE", 0.1)
    path = ledger_path(run_directory, "collector").with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = locks.acquire(path)
    assert lock is not None
    fleet = Fleet([job(tmp_path / "c")], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 3)
    wait_for(lambda: fleet._ships[0].process.exit_code == EXIT_BUSY)
    if released == "during the training":
        lock.release()
        wait_for(lambda: steps_in(tmp_path / "c") == [1, 2, 3])
    else:
        monkeypatch.setattr("fmstune.delivery.shippers.Fleet._keep_going", lambda self, ship: None)
        wait_for(lambda: fleet._ships[0].process.exit_code == EXIT_BUSY)
        lock.release()
    recorder.close("finished")
    fleet.finish()
    assert steps_in(tmp_path / "c") == [1, 2, 3]
    assert report(run_directory, ["collector"])[0].state == "complete"


def _is_removed(directory: Path) -> bool:
    """Remove a directory, unless a process puts a file into it meanwhile."""
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def test_a_shipper_whose_run_is_removed_ends_and_restores_nothing(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run")
    record_steps(run, 1, 400)
    end_run(run)
    last = ShipperProcess(job(tmp_path / "c", fault="slow"), check_within=None)
    last.ship(tmp_path / "run", follow=False, close_timeout=0)
    wait_for(lambda: steps_in(tmp_path / "c"))
    wait_for(lambda: _is_removed(tmp_path / "run"))
    assert last.wait(300) == EXIT_DONE
    last.kill()
    assert not (tmp_path / "run").exists()


def test_a_shipper_whose_run_is_removed_after_its_trainer_was_killed_restores_nothing(tmp_path: Path) -> None:
    directory, gone = tmp_path / "run", []

    class Removes(Tracker):
        def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
            gone.append(step)
            shutil.rmtree(directory)

    record_steps(start_run(directory), 1, 3)
    delivery = Delivery(directory, Removes(), Ledger("removes"))
    with pytest.raises(RunRemoved):
        delivery.run(lambda: bool(gone))
    assert gone == [1]
    assert not directory.exists()


def test_a_shipper_whose_run_is_removed_leaves_the_directory_to_the_next_run(tmp_path: Path) -> None:
    """It may be a `trackers sync`, or the one of a killed training."""
    directory = tmp_path / "run"
    old = start_run(directory, "old")
    record_steps(old, 1, 40)
    end_run(old)
    last = ShipperProcess(job(tmp_path / "c", fault="slow"), check_within=None)
    last.ship(directory, follow=False, close_timeout=0)
    wait_for(lambda: steps_in(tmp_path / "c"))
    wait_for(lambda: _is_removed(directory))
    new = start_run(directory, "new")
    record_steps(new, 101, 150)
    fleet = Fleet([job(tmp_path / "d")], check_within=None, close_timeout=300)
    fleet.start_delivery(directory)
    assert last.wait(300) == EXIT_DONE
    last.kill()
    end_run(new)
    fleet.finish()
    assert max(steps_in(tmp_path / "c")) <= 40
    assert steps_in(tmp_path / "d") == [*range(101, 151)]
    (line,) = report(directory, ["collector"])
    assert (line.delivered, line.state) == (51, "complete")


def test_a_forked_child_ends_no_shipper_of_its_parent(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    fleet = Fleet([job(tmp_path / "c")], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    child = os.fork()
    if child == 0:
        fleet.finish()
        fleet.abandon()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("finished")
    fleet.finish()
    assert steps_in(tmp_path / "c") == [1]
    ledger = load_ledger(run_directory, "collector")
    assert ledger is not None
    assert ledger.error is None


class _no_descriptors:
    """No file descriptor is free in this process."""

    def __enter__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, self._limits[1]))

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
