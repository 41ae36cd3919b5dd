"""Delivery after the trainer has died, by its shipper or by a later sync: real processes."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.main import EXIT_DONE
from fmstune.delivery.shipping.process import Job, ShipperProcess
from fmstune.delivery.sync import sync
from tests.sample_trackers import collected
from tests.support.journals import journal_path
from tests.support.shipping import COLLECTOR, alive, deliver, job, record_steps, start_trainer, steps_in
from tests.support.waiting import wait_for


def test_the_shipper_outlives_a_killed_trainer_and_reports_how_the_run_ended(
    run_directory: Path, tmp_path: Path
) -> None:
    trainer, shipper = start_trainer(run_directory, {"path": str(tmp_path / "c")})
    trainer.kill()
    trainer.wait()
    wait_for(lambda: collected(tmp_path / "c")[-1:] and collected(tmp_path / "c")[-1]["call"] == "close")
    assert steps_in(tmp_path / "c") == list(range(1, 21))
    assert collected(tmp_path / "c")[-1]["status"] == "interrupted"
    wait_for(lambda: not alive(shipper))
    ledger = load_ledger(run_directory, "collector")
    assert ledger is not None
    assert ledger.state == "complete"


def test_a_hanging_shipper_ends_itself_when_its_trainer_is_gone(run_directory: Path, tmp_path: Path) -> None:
    trainer, shipper = start_trainer(
        run_directory, {"path": str(tmp_path / "c"), "fault": "hang", "at": "open"}
    )
    trainer.kill()
    trainer.wait()
    assert alive(shipper)
    wait_for(lambda: not alive(shipper))
    assert len(list(JournalReader(journal_path(run_directory)))) == 20


def test_a_trainer_and_shipper_killed_together_lose_nothing(run_directory: Path, tmp_path: Path) -> None:
    trainer, shipper = start_trainer(run_directory, {"path": str(tmp_path / "c"), "fault": "slow"})
    wait_for(lambda: len(steps_in(tmp_path / "c")) >= 3)
    os.killpg(shipper, signal.SIGKILL)
    trainer.kill()
    trainer.wait()
    (line,) = sync(run_directory, None, {"collector": {"fault": ""}}, str)
    assert line.state == "complete", line
    steps = steps_in(tmp_path / "c")
    # The call that was in progress at the kill may have taken effect.
    assert sorted(set(steps)) == list(range(1, 21))
    assert len(steps) <= 21
    assert len({call["id"] for call in collected(tmp_path / "c") if call["call"] == "open"}) == 1


def test_a_second_sync_at_the_same_time_reports_the_first(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 10)
    recorder.close("finished")
    recorder.journal.close()
    first = ShipperProcess(job(tmp_path / "c", fault="slow"), check_within=None)
    first.ship(run_directory, follow=False, close_timeout=0)
    wait_for(lambda: steps_in(tmp_path / "c"))
    (line,) = sync(run_directory, None, {}, str)
    assert line.error is not None
    assert re.fullmatch(r"another process \(pid \d+\) is delivering it right now", line.error)
    assert first.wait(300) == EXIT_DONE
    first.kill()
    assert steps_in(tmp_path / "c") == list(range(1, 11))


def test_a_running_run_is_not_synced(recorder: Recorder, run_directory: Path, tmp_path: Path) -> None:
    record_steps(recorder, 1, 2)
    (line,) = sync(
        run_directory, "collector", {"collector": {"path": str(tmp_path / "c")}}, lambda _: COLLECTOR
    )
    assert line.error == f"the run is still going, in another process (pid {os.getpid()})"
    assert not (tmp_path / "c").exists()


def test_a_run_moves_to_another_tracker_and_moving_it_twice_changes_nothing(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    deliver(
        recorder,
        run_directory,
        Job("file", "fmstune.trackers.file_tracker:FileTracker", {"path": str(tmp_path / "f.jsonl")}),
    )
    recorder.journal.close()
    options = {"collector": {"path": str(tmp_path / "c")}}
    (line,) = sync(run_directory, "collector", options, lambda _: COLLECTOR)
    assert (line.tracker, line.state, line.delivered) == ("collector", "complete", 12)
    assert steps_in(tmp_path / "c") == list(range(1, 11))
    before = (tmp_path / "c").read_bytes()
    sync(run_directory, "collector", options, lambda _: COLLECTOR)
    assert (tmp_path / "c").read_bytes() == before


def test_a_resumed_run_continues_in_the_same_tracker_run(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:

    from fmstune.secrets.redaction import Redactor
    from tests.support.journals import open_journal

    deliver(recorder, run_directory, job(tmp_path / "c"))
    recorder.journal.close()
    again = Recorder(open_journal(run_directory), Redactor({}))
    again.resumed(5)
    deliver(again, run_directory, job(tmp_path / "c"))
    again.journal.close()
    opened = [call for call in collected(tmp_path / "c") if call["call"] == "open"]
    assert len(opened) == 2
    assert opened[1]["again"]
    assert opened[0]["id"] == opened[1]["id"]
    assert steps_in(tmp_path / "c") == [*range(1, 11), *range(1, 11)]
