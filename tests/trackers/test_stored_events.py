"""The events of a run in a file are counted by number and time, with little memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fmstune.trackers.file.formats import Line
from fmstune.trackers.stored_events import Held

SEQS = st.integers(1, 30) | st.integers(1000, 1100) | st.integers(10**6, 10**18)
LINES = st.lists(
    st.builds(Line, SEQS, st.sampled_from(["metrics", "table"]), st.sampled_from([0.0, 1.5, 2.5])),
    max_size=30,
)


@given(LINES, LINES)
def test_lines_are_counted_whatever_their_numbers_and_times(one: list[Line], two: list[Line]) -> None:
    held, other = Held(), Held()
    for line in one:
        held.note(line)
    for line in two:
        other.note(line)
    counts, others = (Counter((line.seq, line.time) for line in lines) for lines in (one, two))
    for line in (*one, *two):
        assert held.count([line], timed=True) == counts[line.seq, line.time]
    assert held.covers(other) == (others <= counts)
    assert held.last_seq == max((line.seq or 0 for line in one), default=0)


def test_a_million_events_take_tens_of_megabytes() -> None:
    tracemalloc.start()
    held = Held()
    for seq in range(1, 100_001):
        held.note(Line(seq, "metrics", seq / 3))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 2_000_000
