"""The folder of a run that was copied or moved: which one continues the run?"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest

from fmstune.delivery.journal.reader import Header, JournalReader
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.place import become_own_run, original_of, record_place
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.sync import sync
from fmstune.layout import PLACE_NAME
from fmstune.run.tracker_runs import copy_ledgers
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.file_tracker import FileTracker
from tests.support.journals import journal_path, open_journal


def record(journal: JournalWriter, directory: Path, steps: range, *, end: bool = False) -> None:
    """Track some steps, and deliver them to a file that all runs share."""
    for step in steps:
        journal.append("metrics", {"step": step, "stage": directory.name, "values": {"loss": 1 / step}})
    if end:
        journal.append("status", {"status": "finished"})
    journal.close()
    tracker = FileTracker("file", {"path": str(directory.parent / "shared.jsonl")})
    Delivery(directory, tracker, load_ledger(directory, "file") or Ledger("file")).run(lambda: True)


def resume_in(directory: Path) -> JournalWriter:
    """What resuming does to the folder of a run."""
    header = Header(f"id-{directory.name}", directory.name, time.time(), ".")
    if original_of(directory):
        become_own_run(directory, header)
    journal = JournalWriter(journal_path(directory), header)
    record_place(directory, journal.header)
    return journal


@pytest.fixture
def original(run_directory: Path) -> Path:
    journal = open_journal(run_directory)
    record_place(run_directory, journal.header)
    record(journal, run_directory, range(1, 4))
    copy_ledgers(run_directory, run_directory / "checkpoint-3")
    return run_directory


def stored(directory: Path) -> list[tuple[str, int]]:
    lines = map(json.loads, (directory.parent / "shared.jsonl").read_text().splitlines())
    return [(line["run_id"], line["step"]) for line in lines if line["kind"] == "metrics"]


@pytest.mark.parametrize("first", ["run", "copy"])
def test_a_copy_and_its_original_both_continue_and_neither_loses_anything(first: str, original: Path) -> None:
    (original / "checkpoint-3").mkdir(exist_ok=True)
    copy = shutil.copytree(original, original.parent / "copy")
    both = {"run": range(10, 14), "copy": range(20, 22)}
    for name in (first, *(both.keys() - {first})):
        record(resume_in(original.parent / name), original.parent / name, both[name], end=True)
    found = stored(original)
    assert [step for run, step in found if run == "id-1"] == [1, 2, 3, *both["run"]]
    assert [step for run, step in found if run == "id-copy"] == [1, 2, 3, *both["copy"]]
    assert [report(each, ["file"])[0].line().split(" ")[0] for each in (original, copy)] == ["8/8", "6/6"]
    assert JournalReader(journal_path(copy)).header.run == "copy"
    assert original_of(copy) is None  # it is a separate run by now
    kept = load_ledger(copy / "checkpoint-3", "file")
    assert kept is None or kept.run_id is None


def test_a_moved_folder_is_still_the_same_run(original: Path) -> None:
    moved = original.rename(original.parent / "moved")
    assert original_of(moved) is None
    assert resume_in(moved).header.id == "id-1"
    assert "moved" in (moved / "tracking" / PLACE_NAME).read_text()


def test_a_run_where_another_was_moved_away_is_not_its_original(original: Path) -> None:
    moved = original.rename(original.parent / "moved")
    (original / "tracking").mkdir(parents=True)
    record_place(original, Header("id-other", "other", time.time(), "."))
    assert original_of(moved) is None


def test_another_path_to_the_same_folder_is_no_copy(original: Path) -> None:
    link = original.parent / "link"
    link.symlink_to(original)
    assert original_of(link) is None


def test_on_another_machine_a_copy_is_not_detected(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(original, original.parent / "copy")
    assert original_of(copy) == original.resolve()
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert original_of(copy) is None


def test_sync_delivers_nothing_of_a_copy_to_the_originals_run(original: Path) -> None:
    before = stored(original)
    copy = shutil.copytree(original, original.parent / "copy")
    journal = open_journal(copy)  # as an earlier version resumes it
    journal.append("metrics", {"step": 9, "values": {"loss": 1.0}})
    journal.close()
    (line,) = sync(copy, None, {}, str)
    assert line.error == f"its folder is a copy of {original.resolve()}, whose run in file this is"
    assert line.remedy is not None
    assert line.remedy.startswith(f"fmstune trackers sync {original.resolve()}")
    assert stored(original) == before


def test_a_copy_that_another_tracker_has_in_part_is_delivered_there_completely(original: Path) -> None:
    copy = shutil.copytree(original, original.parent / "copy")
    (copy / "tracking" / "file.json").unlink()
    (original / "tracking" / "file.json").unlink()  # the original used another tracker
    path = original.parent / "other.jsonl"
    options = {"file": {"path": str(path)}}
    (line,) = sync(copy, "file", options, lambda _: "fmstune.trackers.file_tracker:FileTracker")
    assert line.state == "complete"
    ledger = load_ledger(copy, "file")
    assert ledger is not None
    dataclasses.replace(ledger, delivered=2, safe_delivered=2, closed=False, offset=0, safe_offset=0).save(
        copy
    )
    (line,) = sync(copy, None, {}, str)  # as after a kill
    assert (line.error, line.state) == (None, "complete")
    shutil.copy(copy / "tracking" / "file.json", original / "tracking")  # it does have this run
    dataclasses.replace(ledger, delivered=2, safe_delivered=2, closed=False, offset=0, safe_offset=0).save(
        copy
    )
    (line,) = sync(copy, None, {}, str)
    assert line.error is not None
    assert "is a copy of" in line.error


def resume(directory: Path, steps: range) -> None:
    """Resume a run as `fmstune train --resume` does, and deliver."""
    journal = resume_in(directory)
    recorder = Recorder(journal, Redactor({}))
    recorder.resumed(3)
    record(journal, directory, steps, end=True)


def test_what_a_run_restored_from_a_backup_tracks_arrives_next_to_its_earlier_points(
    original: Path,
) -> None:
    backup = shutil.copytree(original, original.parent / "backup")
    resume(original, range(10, 14))
    shutil.rmtree(original)
    backup.rename(original)
    resume(original, range(20, 24))
    assert [step for _, step in stored(original)] == [1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert [report(original, ["file"])[0].state] == ["complete"]


def test_a_copy_and_a_renamed_original_both_continue_and_neither_loses_anything(original: Path) -> None:
    shutil.copytree(original, original.parent / "copy")
    moved = original.rename(original.parent / "moved")
    resume(original.parent / "copy", range(10, 14))
    resume(moved, range(20, 24))
    assert {10, 11, 12, 13, 20, 21, 22, 23} <= {step for _, step in stored(original)}
