"""A journal that a later version of fmstune has written: what this version does not know is reported, kept,
and delivered once it is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import DeliveryReport
from fmstune.delivery.sync import sync
from tests.support.journals import changed, journal_path, open_journal
from tests.support.shipping import COLLECTOR, record_steps, steps_in


def make_later(directory: Path, numbers: Sequence[int]) -> None:
    """Give these events a kind of a later version; the lines keep their lengths."""
    lines = journal_path(directory).read_bytes().splitlines(keepends=True)
    for number in numbers:
        lines[number] = changed(lines[number], b'"kind":"metrics"', b'"kind":"orbital"')
    overwrite(directory, b"".join(lines))


def overwrite(directory: Path, data: bytes) -> None:
    with journal_path(directory).open("r+b") as file:  # in place: the file stays the same one
        file.write(data)


def synced(directory: Path, path: Path) -> DeliveryReport:
    (line,) = sync(directory, "collector", {"collector": {"path": str(path)}}, lambda _: COLLECTOR)
    return line


@pytest.mark.parametrize("numbers", [[3, 5], [7]])
def test_events_of_a_later_version_are_named_and_delivered_after_an_upgrade(
    numbers: list[int], recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 7)
    if 7 not in numbers:
        recorder.close("finished")
    recorder.journal.close()
    known = journal_path(run_directory).read_bytes()
    make_later(run_directory, numbers)
    line = synced(run_directory, tmp_path / "c")
    assert (line.state, line.total - line.delivered) == ("failed", len(numbers))
    assert line.error is not None
    assert "a later fmstune may know events of the kind orbital; upgrade with" in line.error
    assert sorted(steps_in(tmp_path / "c")) == [step for step in range(1, 8) if step not in numbers]
    overwrite(run_directory, known)  # as a version reads it that knows the kind
    line = synced(run_directory, tmp_path / "c")
    assert (line.state, line.error) == ("complete", None)
    assert sorted(steps_in(tmp_path / "c")) == [*range(1, 8)]


def test_a_repaired_line_is_delivered_by_the_next_sync(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    record_steps(recorder, 1, 5)
    recorder.close("finished")
    recorder.journal.close()
    whole = journal_path(run_directory).read_bytes()
    line = whole.splitlines(keepends=True)[3]
    overwrite(run_directory, whole.replace(line, b"#" * (len(line) - 1) + b"\n"))
    assert synced(run_directory, tmp_path / "c").state == "failed"
    overwrite(run_directory, whole)
    assert synced(run_directory, tmp_path / "c").state == "complete"
    assert sorted(steps_in(tmp_path / "c")) == [1, 2, 3, 4, 5]


def test_a_resumed_run_numbers_its_events_behind_those_of_a_later_version(
    recorder: Recorder, run_directory: Path
) -> None:
    record_steps(recorder, 1, 4)
    recorder.journal.close()
    make_later(run_directory, [3, 4])
    journal = open_journal(run_directory)
    assert journal.append("metrics", {"stage": None, "step": 5, "epoch": None, "values": {"loss": 1.0}}) == 5
    journal.close()
    reader = JournalReader(journal_path(run_directory))
    assert [event.seq for event in reader] == [1, 2, 5]
    assert (reader.later, reader.damaged) == ({"orbital": 4}, 2)


@pytest.mark.parametrize("header", [b"", b'{"kind":\n'])
def test_a_journal_that_is_written_again_keeps_events_of_a_later_version(
    header: bytes, recorder: Recorder, run_directory: Path
) -> None:
    record_steps(recorder, 1, 4)
    recorder.journal.close()
    make_later(run_directory, [2, 4])
    path = journal_path(run_directory)
    if header:
        path.write_bytes(header + path.read_bytes().partition(b"\n")[2])
        journal = open_journal(run_directory)
    else:
        journal = open_journal(run_directory)
        path.unlink()
        journal.tend()
    journal.append("status", {"status": "finished"})
    journal.close()
    lost = journal.lost
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["seq"] for line in lines[1:]] == [1, 2, 3, 4, 5]
    assert [line["kind"] for line in lines[1:]] == ["metrics", "orbital", "metrics", "orbital", "status"]
    assert lost == 0
