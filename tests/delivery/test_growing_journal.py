"""A journal that is read while it is written: each event is read once, when its whole line is there."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.delivery.journal import reader
from fmstune.delivery.journal.reader import JournalReader
from fmstune.report.replay import replay
from tests.support.journals import journal_path, open_journal


class Growing(io.FileIO):
    """A file that is longer at each read, by any number of bytes: a write becomes visible a page at a time.

    A stand-in for the file system, whose pages and moments cannot be chosen.
    """

    def __init__(self, path: Path, grow: Callable[[], int]) -> None:
        super().__init__(path)
        self._grow = grow

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = os.read(self.fileno(), max(min(len(buffer), self._grow() - self.tell()), 0))
        buffer[: len(data)] = data
        return len(data)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=50),
    st.lists(st.integers(0, 400), min_size=1, max_size=20).filter(any),
    st.lists(st.sampled_from([1, 2, 3, 16, 256]), min_size=1, max_size=5),
)
def test_each_event_is_read_once_however_the_file_grows(
    lengths: list[int], growth: list[int], most: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tracking").mkdir()
        journal = open_journal(Path(folder))
        for length in lengths:
            journal.append("params", {"values": {"text": "x" * length}})
        journal.close()
        path = journal_path(Path(folder))
        header = path.read_bytes().index(b"\n") + 1

        def grown() -> Iterator[int]:
            return itertools.accumulate(itertools.cycle(growth), initial=header)

        def growing() -> mock._patch[Callable[[Path], io.BufferedReader]]:
            size = grown()
            return mock.patch.object(
                reader, "open_file", lambda path: io.BufferedReader(Growing(path, lambda: next(size)))
            )

        with growing():
            events, found = JournalReader(path), list[int]()
            for count in itertools.cycle(most):
                found += [event.seq for event, _ in events.read(count)]
                assert JournalReader(path, events.offset, len(found) + 1).offset == events.offset
                if events.at_end:
                    break
        assert found == list(range(1, len(lengths) + 1))
        assert events.damaged == 0
        with growing():
            lines, read = JournalReader(path), b""
            for count in itertools.cycle(most):
                read += b"".join(lines.read_lines(count))
                if lines.at_end:
                    break
        assert read == path.read_bytes()[header:]


def test_what_the_run_writes_before_it_ends_is_in_its_report(tmp_path: Path) -> None:
    (tmp_path / "tracking").mkdir()
    journal = open_journal(tmp_path)
    journal.append("metrics", {"stage": None, "step": 1, "epoch": None, "values": {"loss": 1.0}})
    path = journal_path(tmp_path)

    def look(path: Path) -> bool:
        journal.append("status", {"name": "finished"})
        journal.close()
        return False

    with mock.patch("fmstune.report.replay.is_being_written", look):
        found = replay(path)
    assert found.damaged == 0
    assert found.newest == 2
