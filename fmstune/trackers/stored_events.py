"""Which of a run's events a file already holds, in a few bytes of memory per event.

A number alone does not identify an event: if the run's folder was restored from a backup, or copied, two
futures may have been written. Each event has its own time.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fmstune.trackers.file.formats import ROWS, Line

_MOST_GAP = 1000
"""Gaps of up to this many numbers are stored as zeros; a line with a number farther off is stored
separately."""


@dataclass
class _Rows:
    """How many lines each event has: in arrays, from the number `first` on, and in a mapping for the few that
    do not fit there. A run may have a million events: 12 bytes each, where a mapping takes 120."""

    first: int = 0
    times: array[float] = field(default_factory=lambda: array("d"))
    counts: array[int] = field(default_factory=lambda: array("I"))
    more: dict[tuple[int, float], int] = field(default_factory=dict)

    def add(self, seq: int, time: float) -> None:
        if not self.times:
            self.first = seq
        at = seq - self.first
        if len(self.times) <= at <= len(self.times) + _MOST_GAP:
            gap = at + 1 - len(self.times)
            self.times.extend([0.0] * gap)
            self.counts.extend([0] * gap)
        if 0 <= at < len(self.times) and (not self.counts[at] or self.times[at] == time):
            self.times[at] = time
            self.counts[at] += 1
        else:
            self.more[seq, time] = self.more.get((seq, time), 0) + 1

    def extend(self, seqs: Sequence[int], times: Sequence[float]) -> None:
        """Add events with increasing numbers."""
        at = seqs[0] - self.first
        if self.times and at == len(self.times) and seqs[-1] - seqs[0] == len(seqs) - 1:
            self.times.extend(times)
            self.counts.extend([1] * len(seqs))
        else:
            for seq, time in zip(seqs, times, strict=True):
                self.add(seq, time)

    def count(self, seq: int, time: float) -> int:
        at, count = seq - self.first, self.more.get((seq, time), 0)
        if 0 <= at < len(self.times) and self.times[at] == time:
            count += self.counts[at]
        return count

    def events(self) -> Iterator[tuple[int, float]]:
        yield from self.more
        for at, time in enumerate(self.times):
            if self.counts[at]:
                yield self.first + at, time


@dataclass
class Held:
    """What a file holds of one run: the number of lines of each event, the last event other than a status,
    and the kind of the last line. Earlier versions wrote params and statuses with the time of their
    delivery, which is later than the event's. These are recognised by their content, too, as a later time
    may be that of another future, before the clock was set back."""

    rows: _Rows = field(default_factory=_Rows)
    others: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    """Times and contents of the lines of params and statuses, by the event's number."""
    last_seq: int = 0
    last_kind: str | None = None

    def note(self, line: Line) -> None:
        """Record one more line."""
        self.last_kind = line.kind
        if line.seq is None:
            return
        if line.kind != "status":
            self.last_seq = max(self.last_seq, line.seq)
        if line.kind in ROWS:
            self.rows.add(line.seq, line.time)
        else:
            self.others.setdefault(line.seq, []).append((line.time, line.content))

    def note_rows(self, seqs: Sequence[int], times: Sequence[float]) -> None:
        """Record a line of metrics for each of these increasing numbers."""
        self.last_kind, self.last_seq = "metrics", max(self.last_seq, seqs[-1])
        self.rows.extend(seqs, times)

    def count(self, lines: Sequence[Line], *, timed: bool) -> int:
        """How many of an event's lines the file holds; for params or a status that is not `timed`, the number
        alone decides."""
        line = lines[0] if lines else None
        if line is None or line.seq is None:
            return 0
        if line.kind in ROWS:
            return self.rows.count(line.seq, line.time)
        there = self.others.get(line.seq, [])
        if not timed:
            return len(there)
        if exact := sum(time == line.time for time, _ in there):
            return exact
        later = {content for time, content in there if time > line.time}
        return len(lines) if all(each.content in later for each in lines) else 0

    def covers(self, other: Held) -> bool:
        """Whether this holds all lines of `other`."""
        rows = all(self.rows.count(*event) >= other.rows.count(*event) for event in other.rows.events())
        return rows and all(
            Counter(lines) <= Counter(self.others.get(seq, [])) for seq, lines in other.others.items()
        )
