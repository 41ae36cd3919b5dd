"""A journal may have fewer events than the trackers: after a power loss, or from a backup."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import Ledger, highest_known, load_ledger
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.layout import TRACKING_DIR
from fmstune.run.directory import run_state
from fmstune.run.tracking import reports
from fmstune.trackers.file_tracker import FileTracker
from fmstune.trackers.records import RunStart, TrackerRun
from tests.support.journals import journal_path, open_journal


def track(journal: JournalWriter, steps: range) -> None:
    for step in steps:
        journal.append("metrics", {"step": step, "stage": "train", "values": {"loss": 1 / step}})


def deliver(directory: Path, name: str) -> None:
    tracker = FileTracker(name, {"path": str(directory / f"{name}.jsonl")})
    Delivery(directory, tracker, load_ledger(directory, name) or Ledger(name)).run(lambda: True)


def arrived(directory: Path, name: str) -> list[int]:
    lines = map(json.loads, (directory / f"{name}.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["kind"] == "metrics"]


@settings(max_examples=25)
@given(written=st.integers(1, 8), kept=st.integers(-1, 8), lagging=st.integers(0, 8), more=st.integers(1, 4))
def test_what_is_tracked_after_the_loss_reaches_every_tracker(
    written: int, kept: int, lagging: int, more: int
) -> None:
    """`kept` event lines are left (-1: not even the header); one tracker got all events, one `lagging`."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / TRACKING_DIR).mkdir()
        journal, path = open_journal(directory), journal_path(directory)
        track(journal, range(1, min(lagging, written) + 1))
        deliver(directory, "slow")
        track(journal, range(min(lagging, written) + 1, written + 1))
        deliver(directory, "fast")
        journal.close()
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: kept + 1]))

        said: list[str] = []
        again = JournalWriter(path, journal.header, said.append, known=highest_known(directory))
        track(again, range(101, 101 + more))
        again.close()
        lost = max(0, written - max(kept, 0))
        assert again.lost == lost
        assert bool(said) == bool(lost)
        for tracker in ("slow", "fast"):
            deliver(directory, tracker)
            assert arrived(directory, tracker)[-more:] == list(range(101, 101 + more))
        slow, fast = report(directory, ["slow", "fast"])
        assert (fast.delivered, fast.total) == (written + more, written + more)
        assert slow.delivered == len(arrived(directory, "slow"))
        assert slow.total == written + more


def test_numbering_continues_from_the_newest_ledger_even_one_in_a_checkpoint(run_directory: Path) -> None:
    Ledger("file", delivered=3).save(run_directory)
    Ledger("file", delivered=7, trying=8).save(run_directory / "checkpoint-5")
    Ledger("wandb", delivered=5).save(run_directory / "checkpoint-10")
    assert highest_known(run_directory) == 8


@pytest.mark.parametrize("delivered", [2, 6])
def test_a_report_counts_the_events_that_the_journal_has_lost(delivered: int, run_directory: Path) -> None:
    track(open_journal(run_directory), range(1, 5))
    Ledger("file", delivered=delivered, safe_delivered=delivered, run_id="r").save(run_directory)
    Ledger("aim", delivered=6, safe_delivered=6, closed=True, run_id="r").save(run_directory)
    file, aim = report(run_directory, ["file", "aim"])
    assert aim.line() == "6/6"
    if delivered == 2:
        assert file.line().startswith("2/6 · events 5 to 6 are not in the journal any more")


def test_a_run_with_an_empty_journal_can_be_resumed(run_directory: Path) -> None:
    journal_path(run_directory).touch()
    assert run_state(run_directory) == "interrupted"
    assert not list(run_directory.glob("*damaged*"))
    with pytest.raises(Exception, match="does not begin with a journal's header"):
        JournalReader(journal_path(run_directory))


def test_a_service_that_claims_more_events_than_exist_is_not_believed(run_directory: Path) -> None:
    class Boastful(FileTracker):
        def open(self, start: RunStart) -> TrackerRun:
            return dataclasses.replace(super().open(start), delivered_through=10**9)

    track(open_journal(run_directory), range(1, 5))
    tracker = Boastful("file", {"path": str(run_directory / "file.jsonl")})
    with pytest.raises(DeliveryFailed, match=r"it holds the events up to 1000000000.*ends with event 4"):
        Delivery(run_directory, tracker, Ledger("file")).run(lambda: True)
    (line,) = report(run_directory, ["file"])
    assert (line.delivered, line.total) == (0, 4)
    assert "up to 1000000000" in line.line()


def test_a_tracker_left_out_of_a_resume_is_reported_as_unused_not_as_behind(
    run_directory: Path,
) -> None:
    track(open_journal(run_directory), range(1, 5))
    for name in ("file", "wandb"):
        Ledger(name, delivered=2, safe_delivered=2, run_id="r").save(run_directory)
    file, wandb = reports(run_directory, ["file"])
    assert file.line().startswith("2/4 · not finished in time · → fmstune trackers sync")
    assert wandb.line().startswith("2/4 · not used by this resume · → fmstune trackers sync")
