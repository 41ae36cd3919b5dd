"""The numbers of the events that a tracker's storage has, for trackers that keep them in a file of their own
beside what the vendor's SDK would write: DVCLive's folders, and SwanLab's."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class NumbersHeld:
    """Up to which event the storage has the run, and without which before that."""

    last_event: int = 0
    gaps: list[int] = field(default_factory=list)

    def has(self, seq: int) -> bool:
        """Whether the event of this number is there."""
        return seq <= self.last_event and seq not in self.gaps

    def add(self, seq: int) -> None:
        """Note that it is."""
        if seq > self.last_event:
            self.gaps.extend(range(self.last_event + 1, seq))
            self.last_event = seq
        elif seq in self.gaps:
            self.gaps.remove(seq)

    def begin_after(self, last: int) -> None:
        """Another run continues: its own events come after this number, and none of them is there yet."""
        self.last_event, self.gaps = last, []
