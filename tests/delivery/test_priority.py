"""Shippers run at idle priority during training, and at normal priority once it has ended."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping import priority
from fmstune.delivery.shipping.process import ShipperProcess
from tests.support.shipping import job, record_steps, start_trainer, steps_in
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has these priorities")


def standing(process: int) -> tuple[int, int | None]:
    """The scheduling policy of a process, and the nice value of its session, if sessions have one."""
    try:
        of_session = int(Path(f"/proc/{process}/autogroup").read_text().split()[-1])
    except (OSError, IndexError):
        of_session = None
    return os.sched_getscheduler(process), of_session


def nice_of_session(process: int, nice: int) -> int | None:
    """`nice` if the session of this process has a nice value; other sessions may have one while ours does
    not."""
    return nice if standing(process)[1] is not None else None


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("returns", [True, False])
def test_a_lowered_priority_is_raised_again_and_no_policy_is_used_that_could_not_be_left(
    returns: bool, sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priority, "_can_leave_idle", lambda: returns)
    before = standing(sleeper)
    wait_for(lambda: priority.lower_priority([sleeper]))
    assert standing(sleeper) == (os.SCHED_IDLE if returns else os.SCHED_BATCH, nice_of_session(sleeper, 19))
    wait_for(lambda: priority.restore_priority([sleeper]))
    assert standing(sleeper)[1] == before[1]
    if not returns or priority._can_raise_priority():
        assert standing(sleeper)[0] == before[0] == os.SCHED_OTHER


def test_a_process_that_has_ended_raises_nothing(sleeper: int) -> None:
    os.kill(sleeper, 9)
    wait_for(lambda: psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE)
    os.waitpid(sleeper, 0)
    assert priority.lower_priority([sleeper])
    assert priority.restore_priority([sleeper])


@pytest.mark.parametrize("end", ["finish", "trainer killed"])
def test_a_shipper_has_low_priority_until_its_training_has_ended_even_during_a_call(
    end: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"path": str(tmp_path / "c"), "fault": "hang"}
    options |= {"at": "close" if end == "finish" else "track"}
    options |= {"from_step": 20} if end == "trainer killed" else {}
    if end == "finish":
        fleet = Fleet([job(**options)], check_within=None, close_timeout=300)
        fleet.start_delivery(run_directory)
        record_steps(recorder, 1, 2)
        supervisor = fleet._ships[0].process.pid
    else:
        recorder.journal.close()
        trainer, supervisor = start_trainer(run_directory, options)
    wait_for(lambda: steps_in(tmp_path / "c") if (tmp_path / "c").exists() else 0)
    shipper = psutil.Process(supervisor).children()[0].pid
    policy = os.SCHED_IDLE if priority._can_leave_idle() else os.SCHED_BATCH
    wait_for(lambda: standing(shipper) == (policy, nice_of_session(shipper, 19)))
    if end == "finish":
        recorder.close("finished")
        finish = threading.Thread(target=fleet.finish)
        finish.start()
    else:
        trainer.kill()
        trainer.wait()
    wait_for(lambda: standing(shipper)[1] == nice_of_session(shipper, 0))
    if priority._can_raise_priority():
        wait_for(lambda: standing(shipper)[0] == os.SCHED_OTHER)
    if end == "finish":
        fleet.abandon()
        finish.join()
    else:
        wait_for(lambda: not psutil.pid_exists(supervisor))


def test_a_shipper_that_falls_behind_gets_normal_priority_until_it_has_caught_up(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.shippers._BEHIND_SECONDS", 0.3)
    monkeypatch.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.1)
    well = tmp_path / "well"
    options: dict[str, Any] = {"fault": "wait", "at": "track", "from_step": 2, "until": str(well)}
    fleet = Fleet([job(tmp_path / "c", **options)], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    record_steps(recorder, 1, 1)
    wait_for(lambda: steps_in(tmp_path / "c") if (tmp_path / "c").exists() else 0)
    shipper = psutil.Process(fleet._ships[0].process.pid).children()[0].pid
    policy = os.SCHED_IDLE if priority._can_leave_idle() else os.SCHED_BATCH
    wait_for(lambda: standing(shipper) == (policy, nice_of_session(shipper, 19)))
    record_steps(recorder, 2, 2)
    wait_for(lambda: standing(shipper)[1] == nice_of_session(shipper, 0))
    if priority._can_raise_priority():
        wait_for(lambda: standing(shipper)[0] == os.SCHED_OTHER)
    well.touch()
    wait_for(lambda: steps_in(tmp_path / "c") == [1, 2])
    wait_for(lambda: standing(shipper) == (policy, nice_of_session(shipper, 19)))
    recorder.close("finished")
    fleet.finish()


def test_a_shipper_without_a_training_has_normal_priority(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 1)
    recorder.close("finished")
    recorder.journal.close()
    shipper = ShipperProcess(job(tmp_path / "c", fault="hang", at="close"), check_within=None)
    shipper.ship(run_directory, follow=False, close_timeout=0)
    wait_for(lambda: (tmp_path / "c").exists())
    (process,) = (child for child in psutil.Process(shipper.pid).children())
    assert standing(process.pid) == (os.SCHED_OTHER, nice_of_session(process.pid, 0))
    assert process.nice() == os.getpriority(os.PRIO_PROCESS, 0)
    shipper.kill()
