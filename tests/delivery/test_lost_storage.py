"""`trackers sync` checks complete deliveries: a tracker's storage may have been removed since."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.delivery.journal.reader import Kind
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.delivery.sync import sync
from fmstune.trackers.aimstack_tracker import AimStackTracker
from fmstune.trackers.base import Tracker
from fmstune.trackers.file.event_file import stored_in
from fmstune.trackers.records import MetricPoint, RunStart, TrackerRun
from fmstune.trackers.registry import reference
from tests.support.journals import open_journal
from tests.support.readers import read_aim, read_wandb_offline, wandb_offline_dirs
from tests.support.shipping import deliver, job

REMOVED: dict[str, Callable[[Path], object]] = {
    "file": lambda folder: (folder / "m.jsonl").rename(folder / "elsewhere.jsonl"),
    "file, emptied": lambda folder: (folder / "m.jsonl").write_text(""),
    "aim": lambda folder: (folder / ".aim").rename(folder / "elsewhere"),
}


@pytest.mark.parametrize("what", REMOVED)
def test_a_removed_storage_gets_everything_again(
    what: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    name = what.partition(",")[0]
    options = {"path": str(tmp_path / "m.jsonl")} if name == "file" else {"repo": str(tmp_path)}
    deliver(recorder, run_directory, Job(name, reference(name), options))
    recorder.journal.close()
    (line,) = sync(run_directory, None, {}, reference)
    assert (line.state, line.note) == ("complete", None)

    REMOVED[what](tmp_path)
    (line,) = sync(run_directory, None, {}, reference)
    assert line.state == "complete"
    assert "all of it was delivered again" in str(line.note)
    if name == "file":
        assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 12
    else:
        from aim import Repo

        (run,) = Repo.from_path(str(tmp_path)).iter_runs()
        (series,) = run.metrics()
        assert len(list(series.values.sparse_list()[0])) == 10
    (line,) = sync(run_directory, None, {}, reference)
    assert line.state == "complete"
    assert "not checked" not in str(line.note)


def test_a_storage_that_is_restored_to_an_older_state_gets_everything_again(
    run_directory: Path, tmp_path: Path
) -> None:
    def record(kind: Kind, fields: dict[str, object], *steps: int) -> None:
        journal = open_journal(run_directory)
        for step in steps:
            journal.append("metrics", {"step": step, "values": {"loss": 1 / step}})
        journal.append(kind, fields)
        journal.close()

    def sync_all() -> list[str]:
        lines = [sync(run_directory, name, options, reference)[0] for name in options]
        assert {line.state for line in lines} == {"complete"}
        return [line.note or "" for line in lines]

    options = {"aim": {"repo": str(tmp_path)}, "file": {"path": str(tmp_path / "m.jsonl")}}
    record("status", {"status": "interrupted"}, 1, 2)
    sync_all()
    shutil.copytree(tmp_path / ".aim", tmp_path / "older")
    shutil.copy(tmp_path / "m.jsonl", tmp_path / "older.jsonl")
    record("resume", {"step": 2})
    record("status", {"status": "finished"}, 3, 4)
    sync_all()
    assert sync_all() == ["", ""]

    shutil.rmtree(tmp_path / ".aim")
    (tmp_path / "older").rename(tmp_path / ".aim")
    (tmp_path / "older.jsonl").replace(tmp_path / "m.jsonl")
    assert all("all of it was delivered again" in note for note in sync_all())
    (run,) = read_aim(tmp_path)
    assert list(run.points.values()) == [[[step, 1 / step] for step in (1, 2, 3, 4)]]
    rows = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if row["kind"] == "metrics"] == [1, 2, 3, 4]


def test_an_offline_folder_of_wandb_that_was_cut_off_is_replaced_and_one_that_is_gone_may_have_been_sent(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    def synced() -> str:
        (line,) = sync(run_directory, None, {}, reference)
        assert line.state == "complete"
        return line.note or ""

    options = {"mode": "offline", "dir": str(tmp_path)}
    deliver(recorder, run_directory, Job("wandb", reference("wandb"), options))
    recorder.journal.close()
    assert "check" not in synced()
    (folder,) = wandb_offline_dirs(tmp_path)
    (file,) = folder.glob("*.wandb")
    os.truncate(file, file.stat().st_size // 2)
    assert "all of it was delivered again" in synced()
    assert "check" not in synced()
    (folder,) = wandb_offline_dirs(tmp_path)
    assert len(read_wandb_offline(folder).history) == 10
    shutil.rmtree(folder)
    assert "not checked whether it is still there" in synced()


@pytest.mark.parametrize(("name", "pattern"), [("wandb", "wandb/offline-run-*"), ("comet", "*.zip")])
def test_when_one_of_the_offline_parts_of_a_resumed_run_is_gone_its_storage_is_not_called_complete(
    name: str, pattern: str, run_directory: Path, tmp_path: Path
) -> None:
    def note() -> str:
        (line,) = sync(run_directory, name, options, reference)
        assert line.state == "complete"
        return str(line.note)

    options = {name: {"mode": "offline", "dir": str(tmp_path)}}
    for step in (1, 2, 3):
        journal = open_journal(run_directory)
        if step > 1:
            journal.append("resume", {"step": step - 1})
        journal.append("metrics", {"step": step, "values": {"loss": 1 / step}})
        journal.append("status", {"status": "interrupted"})
        journal.close()
        note()
    assert "not checked" not in note()
    parts = sorted(tmp_path.glob(pattern))
    assert len(parts) == 3
    for gone in parts[:-1]:
        gone.rename(tmp_path / "elsewhere")
        assert "not checked whether it is still there" in note()
        (tmp_path / "elsewhere").rename(gone)
    assert "not checked" not in note()


def test_a_storage_that_cannot_be_checked_is_reported_as_not_checked(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    deliver(recorder, run_directory, job(tmp_path / "c"))
    recorder.journal.close()
    before = (tmp_path / "c").read_bytes()
    (line,) = sync(run_directory, None, {}, str)
    assert line.state == "complete"
    assert "not checked whether it is still there" in line.line()
    assert (tmp_path / "c").read_bytes() == before
    assert report(run_directory, ["collector"])[0].note is None


def test_checking_a_storage_does_not_create_one(tmp_path: Path) -> None:
    assert stored_in(tmp_path / "none.jsonl", "a" * 32, 0) is False
    assert stored_in(Path("/dev/null"), "a" * 32, 3) is None
    tracker = AimStackTracker(tracker_config={"repo": str(tmp_path)})
    assert tracker.is_stored(RunStart("r", ".", tracker_run_id="0" * 24), 3) is False
    tracker = AimStackTracker(tracker_config={"repo": "aim://127.0.0.1:1"})
    assert tracker.is_stored(RunStart("r", ".", tracker_run_id="0" * 24), 3) is None


class Buffered(Tracker):
    """Rows wait for `flush`, and the service is down at the second one."""

    idempotent = True

    def __init__(self, service: list[int], *, well: bool) -> None:
        super().__init__("t")
        self._service, self._well = service, well
        self._waiting: list[int] = []

    def open(self, start: RunStart) -> TrackerRun:
        return TrackerRun("id", delivered_through=max(self._service, default=None))

    def track_point(self, point: MetricPoint) -> None:
        self._waiting.append(self.seq or 0)

    def flush(self) -> None:
        if self._service and not self._well:
            raise ConnectionResetError("it has died")
        self._service += self._waiting
        self._waiting = []

    def holds(self, last: int) -> bool:
        return max([*self._service, *self._waiting], default=0) >= last


def test_rows_that_were_waiting_when_the_service_died_are_not_lost(run_directory: Path) -> None:
    service: list[int] = []
    journal = open_journal(run_directory)
    for step in (1, 2):
        journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
        with contextlib.suppress(DeliveryFailed):
            ledger = load_ledger(run_directory, "t") or Ledger("t")
            Delivery(run_directory, Buffered(service, well=False), ledger).run(lambda: True)
    journal.append("status", {"status": "finished"})
    journal.close()
    assert service == [1]
    known = load_ledger(run_directory, "t")
    assert known is not None
    Delivery(run_directory, Buffered(service, well=True), known).run(lambda: True)
    (line,) = report(run_directory, ["t"])
    assert (service, line.state, line.note) == ([1, 2], "complete", None)


class Frugal(Tracker):
    """Reports itself what it leaves out of the first step."""

    idempotent = True

    def __init__(self) -> None:
        super().__init__("t")
        self.said: list[str] = []

    @property
    def adapted(self) -> tuple[str, ...]:
        return tuple(self.said)

    def track_point(self, point: MetricPoint) -> None:
        if point.step == 1:
            self.said.append("something is left out")


def test_what_a_tracker_left_out_in_an_earlier_process_is_still_reported(run_directory: Path) -> None:
    journal = open_journal(run_directory)
    for step in (1, 2):
        journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
        ledger = load_ledger(run_directory, "t") or Ledger("t")
        Delivery(run_directory, Frugal(), ledger).run(lambda: True)
    journal.close()
    (line,) = report(run_directory, ["t"])
    assert line.changes == ("something is left out",)
