"""The numbers of the events that a tracker's storage holds, for trackers that record them in their own file
next to the vendor's: DVCLive's folders and SwanLab's."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StoredNumbers:
    """The last event of the run that the storage holds, and the ones missing before it."""

    last_event: int = 0
    gaps: list[int] = field(default_factory=list)

    def has(self, seq: int) -> bool:
        """Whether the storage holds the event of this number."""
        return seq <= self.last_event and seq not in self.gaps

    def add(self, seq: int) -> None:
        """Record that the storage holds it."""
        if seq > self.last_event:
            self.gaps.extend(range(self.last_event + 1, seq))
            self.last_event = seq
        elif seq in self.gaps:
            self.gaps.remove(seq)

    def begin_after(self, last: int) -> None:
        """Another run continues: its own events follow this number, and none is stored yet."""
        self.last_event, self.gaps = last, []
