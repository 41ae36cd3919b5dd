"""Store a run's numbers, by the million: the first ones in memory, the others in an anonymous file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, overload

_AT_ONCE = 8192
_BYTES = 8
_MOST_IN_MEMORY = 64 << 20
_MOST_LOADED = 8


class Room:
    """The storage of a run's columns."""

    def __init__(self) -> None:
        self._used = 0
        self._file: IO[bytes] | None = None
        self._end = 0
        self._loaded: dict[int, array[float]] = {}

    def keep(self, numbers: array[float]) -> array[float] | int:
        """Store numbers; return them, or their position in the file."""
        size = len(numbers) * _BYTES
        if self._used + size > _MOST_IN_MEMORY:
            with contextlib.suppress(OSError):  # no room on disk, either: use memory
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (as long-lived as this)
                if os.pwrite(self._file.fileno(), numbers, self._end) == size:
                    self._end += size
                    return self._end - size
        self._used += size
        return numbers

    def get(self, kept: array[float] | int) -> array[float]:
        """Return stored numbers."""
        if not isinstance(kept, int):
            return kept
        found = self._loaded.get(kept)
        if found is None:
            assert self._file is not None
            found = array("d", os.pread(self._file.fileno(), _AT_ONCE * _BYTES, kept))
            if len(self._loaded) >= _MOST_LOADED:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[kept] = found
        return found


class Numbers(Sequence[float]):
    """An append-only sequence of floats."""

    __slots__ = ("_kept", "_room", "_tail")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._kept: list[array[float] | int] = []
        self._tail = array("d")

    def sibling(self) -> Numbers:
        """An empty sequence in the same storage."""
        return Numbers(self._room)

    def append(self, number: float) -> None:
        """Add a number."""
        self._tail.append(number)
        self._store_tail()

    def extend(self, numbers: array[float]) -> None:
        """Add numbers."""
        self._tail.extend(numbers)
        self._store_tail()

    def blocks(self) -> Iterator[array[float]]:
        """Yield blocks of some thousands of numbers; blocks of two columns have equal lengths."""
        yield from map(self._room.get, self._kept)
        if self._tail:
            yield self._tail

    def whole(self) -> array[float]:
        """All numbers as one array in memory."""
        found = array("d")
        for block in self.blocks():
            found.extend(block)
        return found

    def __len__(self) -> int:
        return len(self._kept) * _AT_ONCE + len(self._tail)

    def __iter__(self) -> Iterator[float]:
        for block in self.blocks():
            yield from block

    @overload
    def __getitem__(self, at: int) -> float: ...

    @overload
    def __getitem__(self, at: slice) -> array[float]: ...

    def __getitem__(self, at: int | slice) -> float | array[float]:
        """The number at an index, or those of a slice without a stride."""
        if isinstance(at, slice):
            return self._between(*at.indices(len(self))[:2])
        block, place = divmod(range(len(self))[at], _AT_ONCE)
        return self._block(block)[place]

    def _between(self, begin: int, end: int) -> array[float]:
        found = array("d")
        while begin < end:
            block, place = divmod(begin, _AT_ONCE)
            here = self._block(block)[place : place + end - begin]
            found.extend(here)
            begin += len(here)
        return found

    def _block(self, number: int) -> array[float]:
        return self._tail if number == len(self._kept) else self._room.get(self._kept[number])

    def _store_tail(self) -> None:
        tail = self._tail
        while len(tail) >= _AT_ONCE:
            self._kept.append(self._room.keep(tail[:_AT_ONCE]))
            del tail[:_AT_ONCE]


def ends(numbers: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest of some numbers."""
    blocks = numbers.blocks() if isinstance(numbers, Numbers) else iter((numbers,))
    found = [(min(block), max(block)) for block in blocks]
    return min(low for low, _ in found), max(high for _, high in found)


def whole(numbers: Sequence[float]) -> Sequence[float]:
    """The same numbers, all in memory."""
    return numbers.whole() if isinstance(numbers, Numbers) else numbers
