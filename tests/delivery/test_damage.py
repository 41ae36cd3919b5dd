"""Whatever happens to the journal and the ledgers while they are written, no loss is silent."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.delivery.journal.reader import JournalReader, is_being_written, last_seq
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import Ledger, all_ledgers, ledger_path, load_ledger
from fmstune.layout import TRACKING_DIR
from tests.support.journals import events, journal_path, open_journal


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00garbage")


def garbage_of_the_same_size(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def deep_json(path: Path) -> None:
    path.write_text("[" * 200_000)


def more_garbage(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"garbage without an end")


def other_file(path: Path) -> None:
    path.with_suffix(".new").write_text("{}\n")
    path.with_suffix(".new").replace(path)


def no_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def moved(path: Path) -> None:
    path.parent.rename(path.parent.with_name(f"moved-{time.monotonic_ns()}"))


DAMAGES: list[Callable[[Path], None]] = [
    delete,
    empty,
    cut,
    make_directory,
    garbage,
    garbage_of_the_same_size,
    deep_json,
    more_garbage,
    other_file,
    no_folder,
    moved,
]


def steps(path: Path) -> list[int | None]:
    return [event.step for event in JournalReader(path)]


@given(st.lists(st.sampled_from(["event", "event", "tend", *DAMAGES]), max_size=15))
@settings(max_examples=60)
def test_a_journal_that_is_damaged_at_any_moment_ends_up_with_all_events_and_stays_locked(
    script: list[str | Callable[[Path], None]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / TRACKING_DIR).mkdir()
        path = journal_path(directory)
        journal = open_journal(directory)
        written = 0
        for action in script:
            if action == "event":
                written += 1
                journal.append("metrics", {"step": written, "values": {"loss": 1.0}})
            elif action == "tend":
                journal.tend()
                assert is_being_written(path)
            elif callable(action) and path.is_file():
                action(path)
        journal.close()
        assert (journal.unrecorded, journal.lost) == (0, 0)
        assert steps(path) == list(range(1, written + 1))
        assert last_seq(path) == written
        assert not list(path.parent.glob("*.tmp"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reader_misses_nothing_of_a_journal_that_is_damaged_meanwhile(
    damage: Callable[[Path], None], run_directory: Path
) -> None:
    journal, path = open_journal(run_directory), journal_path(run_directory)
    for step in range(1, 6):
        journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
    reader = JournalReader(path)
    seen = [event.seq for event, _ in reader.read()]
    damage(path)
    seen += [event.seq for event, _ in reader.read(patient=True)]
    journal.tend()
    for step in range(6, 9):
        journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
    journal.close()
    while found := reader.read(patient=True):
        seen += [event.seq for event, _ in found]
    assert sorted(set(seen)) == list(range(1, 9))
    assert reader.at_end


def test_a_clock_that_was_set_back_does_not_postpone_the_look_at_the_file(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(run_directory)
    journal.append("metrics", {"step": 1, "values": {"loss": 1.0}})
    moment = time.time()
    monkeypatch.setattr(time, "time", lambda: moment - 3600)
    journal_path(run_directory).unlink()
    journal.append("metrics", {"step": 2, "values": {"loss": 1.0}})
    assert [event.step for event in JournalReader(journal_path(run_directory))] == [1, 2]
    journal.close()


def test_what_cannot_be_recovered_is_counted(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmstune.delivery.journal.file._RECENT_BYTES", 2000)
    said: list[str] = []
    journal = open_journal(run_directory)
    journal._on_problem = said.append
    for step in range(1, 101):
        journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
    empty(journal_path(run_directory))
    journal.append("metrics", {"step": 101, "values": {"loss": 1.0}})
    journal.close()
    left = steps(journal_path(run_directory))
    assert left == list(range(102 - len(left), 102))
    assert 5 < len(left) < 30
    assert journal.lost == 101 - len(left)
    assert f"{journal.lost} of its events are lost" in said[0]


def test_a_run_continues_with_a_journal_that_was_damaged_in_between(run_directory: Path) -> None:
    journal, path = open_journal(run_directory), journal_path(run_directory)
    for step in range(1, 6):
        journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"garbage\n", *lines[3:]]))
    again = JournalWriter(path, journal.header, known=9)
    assert again.append("metrics", {"step": 6, "values": {"loss": 1.0}}) == 10
    again.close()
    assert [event.seq for event in JournalReader(path)] == [3, 4, 5, 10]
    assert path.with_name(path.name + ".damaged").exists()


@contextmanager
def no_room(path: Path, more: int = 0) -> Iterator[None]:
    """No file of this process can grow beyond the current size of this one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("more", [0, 50, 120])
def test_events_during_a_full_disk_are_written_in_order_once_there_is_space(
    more: int, run_directory: Path
) -> None:
    journal, path = open_journal(run_directory), journal_path(run_directory)
    journal.append("metrics", {"step": 1, "values": {"loss": 1.0}})
    with no_room(path, more):
        for step in range(2, 6):
            journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
        assert journal.unrecorded in (3, 4)
        assert path.read_bytes().endswith(b"\n")
    journal.append("metrics", {"step": 6, "values": {"loss": 1.0}})
    assert journal.unrecorded == 0
    with no_room(path):
        journal.append("status", {"step": 7, "status": "finished"})
    journal.close()
    assert journal.unrecorded == 0
    assert steps(path) == list(range(1, 8))


def test_events_beyond_the_memory_limit_of_a_full_disk_are_counted_but_the_status_is_kept(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.journal.writer._MOST_WAITING", 1000)
    journal, path = open_journal(run_directory), journal_path(run_directory)
    with no_room(path):
        for step in range(1, 31):
            journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
        journal.append("status", {"status": "finished"})
    journal.close()
    events = list(JournalReader(path))
    assert 5 < len(events) < 15
    assert journal.unrecorded == 31 - len(events)
    assert events[-1].status == "finished"


def test_a_ledger_on_a_full_disk_leaves_no_file_behind(run_directory: Path) -> None:
    Ledger("aim").save(run_directory)
    with no_room(ledger_path(run_directory, "aim"), -100), pytest.raises(OSError, match="File too large"):
        Ledger("aim", error="x" * 500).save(run_directory)
    assert [path.name for path in ledger_path(run_directory, "aim").parent.iterdir()] == ["aim.json"]


@pytest.mark.parametrize("damage", [delete, empty, make_directory, garbage, deep_json])
def test_a_checkpoint_restores_a_damaged_ledger(damage: Callable[[Path], None], run_directory: Path) -> None:
    ledger = Ledger("pkg.json_x:Aim", run_id="run-1", delivered=3, safe_delivered=3)
    ledger.save(run_directory / "checkpoint-9")
    Ledger("pkg.json_x:Aim", run_id="old").save(run_directory / "checkpoint-10" / "x")
    ledger.save(run_directory)
    damage(ledger_path(run_directory, ledger.tracker))
    found = load_ledger(run_directory, ledger.tracker)
    assert found is not None
    assert (found.run_id, found.delivered) == ("run-1", 3)
    assert [each.tracker for each in all_ledgers(run_directory)] == [ledger.tracker]
    ledger.save(run_directory)
    assert load_ledger(run_directory, ledger.tracker) == ledger


def test_a_damaged_ledger_without_a_copy_is_reported(run_directory: Path) -> None:
    Ledger("aim").save(run_directory)
    Ledger("file", run_id="f").save(run_directory)
    deep_json(ledger_path(run_directory, "aim"))
    aim, file = all_ledgers(run_directory)
    assert aim.error is not None
    assert "its ledger was damaged and is set aside as aim.json.damaged" in aim.error
    assert file.error is None


def test_a_journal_that_cannot_be_written_again_stays_in_its_place(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(run_directory)
    journal.append("params", {"values": {"a": 1}})
    path, replace = journal_path(run_directory), os.replace

    def fails(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    with path.open("ab") as file:
        file.write(b"not a line")
    with path.open("r+b") as file:
        file.write(b"X")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fails)
        journal.tend()
        assert path.exists()
    journal.close()
    assert [event.seq for event in events(run_directory)] == [1]
