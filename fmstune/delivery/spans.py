"""Sets of event numbers, stored as ranges: thousands of consecutive refused events take one line of a
ledger."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spans:
    """An immutable set of positive integers; `ranges` are its (first, last), in order, none adjacent."""

    ranges: tuple[tuple[int, int], ...] = ()

    def __contains__(self, number: int) -> bool:
        at = self._at(number)
        return at >= 0 and number <= self.ranges[at][1]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    @property
    def first(self) -> int:
        """The smallest number; 0 when empty."""
        return self.ranges[0][0] if self.ranges else 0

    @property
    def last(self) -> int:
        """The largest number; 0 when empty."""
        return self.ranges[-1][1] if self.ranges else 0

    def within(self, first: int, last: int) -> int:
        """How many numbers from `first` to `last` are in the set."""
        return sum(
            max(0, min(last, high) - max(first, low) + 1)
            for low, high in self.ranges[max(0, self._at(first)) :]
        )

    def up_to(self, last: int) -> Spans:
        """The numbers of the set that are not above `last`."""
        return Spans(tuple((low, min(high, last)) for low, high in self.ranges if low <= last))

    def with_span(self, first: int, last: int) -> Spans:
        """The set with the numbers from `first` to `last`."""
        left = bisect.bisect_left(self.ranges, first - 1, key=lambda span: span[1])
        right = bisect.bisect_right(self.ranges, last + 1, key=lambda span: span[0])
        joined = self.ranges[left:right]
        if joined:
            first, last = min(first, joined[0][0]), max(last, joined[-1][1])
        return Spans((*self.ranges[:left], (first, last), *self.ranges[right:]))

    def with_all(self, other: Spans) -> Spans:
        """The numbers that are in this set or in the other."""
        joined = self
        for first, last in other.ranges:
            joined = joined.with_span(first, last)
        return joined

    def without(self, number: int) -> Spans:
        """The set without one number."""
        if number not in self:
            return self
        at = self._at(number)
        first, last = self.ranges[at]
        left = ((first, number - 1),) if first < number else ()
        right = ((number + 1, last),) if number < last else ()
        return Spans((*self.ranges[:at], *left, *right, *self.ranges[at + 1 :]))

    def to_text(self) -> str:
        """The set as a string: `3, 5-9`."""
        return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in self.ranges)

    def _at(self, number: int) -> int:
        """The index of the last range that starts at `number` or below; -1 when there is none."""
        return bisect.bisect_right(self.ranges, number, key=lambda span: span[0]) - 1


EMPTY = Spans()


def spans_of(numbers: Iterable[int]) -> Spans:
    """The set of the given numbers."""
    found = Spans()
    for number in numbers:
        found = found.with_span(number, number)
    return found


def spans_from_json(raw: Any) -> Spans:
    """The set that `Spans.to_text` wrote, or that an earlier version wrote as a list of numbers. Raises
    `ValueError` or `TypeError` for anything else."""
    if not isinstance(raw, str):
        return spans_of(int(number) for number in raw)
    found = Spans()
    for part in raw.split(",") if raw else ():
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 < low <= high:
            raise ValueError(f"no range of events: {part!r}")
        found = found.with_span(low, high)
    return found
