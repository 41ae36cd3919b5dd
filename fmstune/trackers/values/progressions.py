"""A set of integers that mostly grows in equal steps, like those of a training: a million take a few
bytes."""

from __future__ import annotations

import bisect
import operator
from array import array
from collections.abc import Sequence


class Progressions:
    """The integers (64 bits) that were added, stored as ordered, disjoint progressions: the first and last
    number of each, and the distance between its numbers."""

    __slots__ = ("_firsts", "_lasts", "_strides")

    def __init__(self) -> None:
        self._firsts, self._lasts, self._strides = array("q"), array("q"), array("q")

    def __contains__(self, number: int) -> bool:
        lasts = self._lasts
        if not lasts or number > lasts[-1]:
            return False
        at = bisect.bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= lasts[at] and (number - self._firsts[at]) % self._strides[at] == 0

    @property
    def last(self) -> int | None:
        """The largest number; `None` when empty."""
        return self._lasts[-1] if self._lasts else None

    def add(self, number: int) -> bool:
        """Add a number; return whether it is new."""
        lasts = self._lasts
        if lasts and number <= lasts[-1]:
            if number in self:
                return False
            self._put_between(number)
            return True
        if lasts:
            stride = number - lasts[-1]
            if stride == self._strides[-1]:
                lasts[-1] = number
                return True
            if lasts[-1] == self._firsts[-1] and stride < 1 << 63:
                lasts[-1], self._strides[-1] = number, stride
                return True
        self._insert(len(lasts), number, number, 1)
        return True

    def add_after(self, numbers: Sequence[int]) -> bool:
        """Add numbers, in a few operations, if they continue the last progression; return whether they do."""
        lasts, strides = self._lasts, self._strides
        if not numbers or not lasts or lasts[-1] == self._firsts[-1]:
            return False
        first, last, stride = lasts[-1] + strides[-1], numbers[-1], strides[-1]
        if numbers[0] != first or last != first + stride * (len(numbers) - 1):
            return False
        if any(map(operator.ne, numbers, range(first, last + 1, stride))):
            return False
        lasts[-1] = last
        return True

    def cut(self, last: int) -> None:
        """Remove the numbers above `last`."""
        keep = bisect.bisect_right(self._firsts, last)
        for each in (self._firsts, self._lasts, self._strides):
            del each[keep:]
        if keep and self._lasts[-1] > last:
            self._set(keep - 1, self._firsts[-1], self._below(keep - 1, last))

    def _put_between(self, number: int) -> None:
        at = bisect.bisect_right(self._firsts, number) - 1
        if at >= 0 and number < self._lasts[at]:  # in the middle of a progression
            below, last, stride = self._below(at, number), self._lasts[at], self._strides[at]
            self._set(at, self._firsts[at], below)
            self._insert(at + 1, below + stride, last, stride if below + stride < last else 1)
        self._insert(at + 1, number, number, 1)

    def _below(self, at: int, number: int) -> int:
        """The last number of a progression that is not above `number`."""
        return number - (number - self._firsts[at]) % self._strides[at]

    def _set(self, at: int, first: int, last: int) -> None:
        self._lasts[at] = last
        if first == last:
            self._strides[at] = 1

    def _insert(self, at: int, first: int, last: int, stride: int) -> None:
        self._firsts.insert(at, first)
        self._lasts.insert(at, last)
        self._strides.insert(at, stride)
