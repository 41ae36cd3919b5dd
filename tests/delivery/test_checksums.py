"""A line of the journal whose bytes have changed is never taken for an event with other values, and a
header whose bytes have changed is replaced by its copy."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmstune.delivery.journal.events import parse, parsed
from fmstune.delivery.journal.header import Header, JournalError
from fmstune.delivery.journal.reader import Event, JournalReader
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.place import become_own_run, record_place
from fmstune.layout import TRACKING_DIR
from fmstune.report.batches import Batch, Later, batches
from fmstune.report.replay import replay
from tests.support.journals import journal_path, open_journal

STEPS = 12
FLIPS = st.tuples(st.integers(0, 10**6), st.integers(1, 255))
"""Bytes to change: where, and the bits of each that are flipped."""


def written(directory: Path) -> list[bytes]:
    """The lines of a journal with events of several kinds."""
    (directory / TRACKING_DIR).mkdir(exist_ok=True)
    journal = open_journal(directory)
    journal.append("params", {"name": "params", "values": {"team": "é\u2028", "lr": 1e-4}})
    for step in range(1, STEPS + 1):
        values = {"loss": 2 + 1 / step, "grad_norm": float("nan") if step == 5 else step}
        journal.append("metrics", {"stage": "train", "step": step, "epoch": step / 7, "values": values})
    journal.append("table", {"name": "samples", "rows": [{"text": "a", "score": 17}]})
    journal.append("status", {"status": "finished"})
    journal.close()
    return journal_path(directory).read_bytes().splitlines(keepends=True)


def in_columns(found: Batch) -> dict[int, Any]:
    """The first value of each event in a batch of one group, by number."""
    (logged,) = found.logged
    rows = zip(*(column.values for column in logged.columns.values()), strict=True)
    return dict(zip(found.seqs, zip(logged.steps, rows, strict=True), strict=True))


@given(st.lists(FLIPS, min_size=1, max_size=3))
@example([(0, 1)])
@example([(-1, 1)])
def test_changed_bytes_are_read_as_the_event_that_was_written_or_not_at_all(
    flips: list[tuple[int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        header, *lines = written(directory)
        data = bytearray(b"".join(lines))
        for at, bits in flips:
            data[at % len(data)] ^= bits
        journal_path(directory).write_bytes(header + data)
        expected = {event.seq: event for line in lines if (event := parse(line))}
        reader = JournalReader(journal_path(directory))
        read = list(reader)
        assert all(repr(event) == repr(expected[event.seq]) for event in read)
        missing = len(expected) - len({event.seq for event in read})
        assert missing <= 2 * len(flips)  # a changed line's end damages two of them
        cut_off = not data.endswith(b"\n")
        assert not missing or reader.damaged or cut_off
        shown = replay(journal_path(directory))
        assert (shown.events, shown.damaged) == (len(read), reader.damaged + cut_off)
        for found in batches(bytes(data).splitlines(keepends=True)):
            if isinstance(found, Batch):
                batch = in_columns(found)
                assert batch.items() <= whole_columns(lines).items()
            elif isinstance(found, Event):
                assert repr(found) == repr(expected[found.seq])
            else:
                assert not isinstance(found, Later)


def whole_columns(lines: list[bytes]) -> dict[int, Any]:
    """`in_columns` of all metrics of undamaged lines."""
    found: dict[int, Any] = {}
    for event in filter(None, map(parse, lines)):
        if event.kind == "metrics":
            found[event.seq] = (float(event.step or 0), tuple(map(float, event.values.values())))
    return found


@given(st.data())
def test_lines_are_parsed_alike_one_by_one_and_together(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        lines = written(Path(name))[1:]
    for index in data.draw(st.sets(st.integers(0, len(lines) - 1), max_size=3)):
        line, how = lines[index], data.draw(st.sampled_from(["no checksum", "other", "other key", "CRLF"]))
        text, _, checksum = line.rpartition(b',"crc":')
        if how == "no checksum":
            lines[index] = text + b"}\n"
        elif how == "other":
            lines[index] = text + b',"crc":"00000000"}\n'
        elif how == "other key":
            lines[index] = text + b',"abc":' + checksum
        else:
            lines[index] = line[:-1] + b"\r\n"
    together = parsed(lines)
    assert repr(together) == repr(list(map(parse, lines)))
    assert [event is None for event in together] == [b'"crc":"00000000"' in line for line in lines]


def lost(header: bytes) -> bytes:
    return b""


def zeros(header: bytes) -> bytes:
    return b"\0" * (len(header) - 1) + b"\n"


def other_name(header: bytes) -> bytes:
    return header.replace(b'"run":"', b'"run":"x')


def joined_with_an_event(header: bytes) -> bytes:
    return header[:-1]


@pytest.mark.parametrize("damage", [lost, zeros, other_name, joined_with_an_event])
def test_a_journal_with_a_damaged_header_is_read_with_its_copy(
    damage: Callable[[bytes], bytes], run_directory: Path
) -> None:
    header, *lines = written(run_directory)
    path = journal_path(run_directory)
    whole = JournalReader(path)
    expected = [event.seq for event in whole]
    record_place(run_directory, whole.header)
    path.write_bytes(damage(header) + b"".join(lines))
    if damage is joined_with_an_event:
        expected.remove(1)
    reader = JournalReader(path)
    assert [event.seq for event in reader] == expected
    assert (reader.header, reader.damaged) == (whole.header, int(damage is not lost))
    run = replay(path)
    assert (run.events, run.missing, run.status) == (len(expected), len(lines) - len(expected), "finished")
    again = open_journal(run_directory)  # a resumed run restores it
    assert again.append("resume", {"step": STEPS, "session": "s"}) == len(lines) + 1
    again.close()
    assert path.read_bytes().startswith(header)
    assert JournalReader(path).header == whole.header


def test_a_copy_of_a_run_with_a_damaged_header_becomes_its_own_run(run_directory: Path) -> None:
    header, *lines = written(run_directory)
    record_place(run_directory, JournalReader(journal_path(run_directory)).header)
    copy = Path(shutil.copytree(run_directory, run_directory.with_name("copy")))
    journal_path(copy).write_bytes(b"damaged" + header + b"".join(lines))
    own = Header("id-2", "copy", 2.0, ".")
    become_own_run(copy, own)
    journal = JournalWriter(journal_path(copy), own)
    journal.append("resume", {"step": STEPS, "session": "s"})
    journal.close()
    reader = JournalReader(journal_path(copy))
    assert (reader.header.id, len(list(reader)), reader.damaged) == ("id-2", len(lines) + 1, 0)


def test_without_a_copy_a_damaged_header_is_named(run_directory: Path) -> None:
    header, *lines = written(run_directory)
    journal_path(run_directory).write_bytes(other_name(header) + b"".join(lines))
    with pytest.raises(JournalError, match="does not begin with a journal's header"):
        JournalReader(journal_path(run_directory))
