"""The tracker `aim` with a real `aim server` that loses what it had, or refuses what it gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.trackers.aimstack_tracker import AimStackTracker
from fmstune.trackers.records import RunStart
from tests.support.aim_servers import aim_server, free_port
from tests.support.readers import read_aim
from tests.support.shipping import record_steps
from tests.support.waiting import wait_for

AIM = "fmstune.trackers.aimstack_tracker:AimStackTracker"


@pytest.mark.parametrize("backed_up", [False, True], ids=["emptied", "restored"])
def test_a_server_that_comes_back_without_what_it_had_gets_the_whole_run(
    backed_up: bool, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    port, storage, backup = free_port(), tmp_path / "remote", tmp_path / "backup"

    def delivered(events: int) -> bool:
        return report(run_directory, ["aim"])[0].delivered == events

    fleet = Fleet(
        [Job("aim", AIM, {"repo": f"aim://127.0.0.1:{port}"})], check_within=None, close_timeout=300
    )
    with aim_server(storage, port):
        fleet.start_delivery(run_directory)
        recorder.set_params({"lr": 0.1}, "config")
        record_steps(recorder, 1, 4)
        wait_for(lambda: delivered(5))
    if backed_up:
        shutil.copytree(storage, backup)
        with aim_server(storage, port):
            record_steps(recorder, 5, 9)
            recorder.track(1.0, "reward", "eval", step=9)
            wait_for(lambda: delivered(11))
    shutil.rmtree(storage)  # as a container without a volume does that is started again
    if backed_up:
        shutil.copytree(backup, storage)
    with aim_server(storage, port):
        record_steps(recorder, 10, 20)
        recorder.track(2.0, "reward", "eval", step=20)
        recorder.close("finished")
        fleet.finish()
    (line,) = report(run_directory, ["aim"])
    assert line.state == "complete", line
    assert "all of it was delivered again" in str(line.note)
    (run,) = read_aim(storage, reindex=True)
    steps = [*range(1, 10 if backed_up else 5), *range(10, 21)]
    assert [step for step, _ in run.points["loss", "train"]] == steps
    assert [step for step, _ in run.points["reward", "eval"]] == ([9, 20] if backed_up else [20])
    assert run.params["config"] == {"lr": 0.1}
    assert run.params["status"] == "finished"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Aim's thread ends by it
def test_what_a_server_refuses_is_an_error_rather_than_a_wait_forever(tmp_path: Path) -> None:
    port = free_port()
    with aim_server(tmp_path / "remote", port):
        tracker = AimStackTracker(tracker_config={"repo": f"aim://127.0.0.1:{port}"})
        tracker.open(RunStart("run", str(tmp_path), run_id="an id"))
        tracker.flush()
        tracker._run.repo._client.run_instruction(0, "nobody's", "method", (), is_write_only=True)
        with pytest.raises(Exception, match="nobody's"):
            tracker.flush()
