"""Shared state of a shipper and its supervisor."""

from __future__ import annotations

import mmap
import struct
import time

_SECONDS_WITHOUT_ORDER = 30.0
"""Seconds for a shipper to read its order when its trainer is already gone."""
_ORDER, _ORDER_AT = struct.Struct("=dd"), 8
_LOG_READER, _LOG_READER_AT = struct.Struct("=q"), 24
_END, _END_AT = struct.Struct("=q"), 32


class TrainerWatch:
    """Messages between supervisor and shipper in shared memory, which no SDK can close.

    The first byte is written by the supervisor, the rest by the shipper.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def gone(self) -> bool:
        """Whether the process that started the shipper has ended."""
        return self._page[0] != 0

    @property
    def log_reader(self) -> int:
        """The process that reads the shipper's output until the end; 0 when there is none."""
        return int(_LOG_READER.unpack_from(self._page, _LOG_READER_AT)[0])

    def note_log(self, reader: int) -> None:
        """Tell the supervisor which process reads the shipper's output."""
        _LOG_READER.pack_into(self._page, _LOG_READER_AT, reader)

    @property
    def end(self) -> int:
        """The exit code that the shipper itself chose; 0 while it has not finished."""
        return int(_END.unpack_from(self._page, _END_AT)[0])

    def note_end(self, code: int) -> None:
        """Tell the supervisor that the shipper itself ends now, and not its tracker."""
        _END.pack_into(self._page, _END_AT, code)

    def note_gone(self) -> None:
        """Tell the shipper that the journal is no longer written."""
        self._page[0] = 1

    def allow(self, seconds: float) -> None:
        """Have the shipper ended this many seconds after its trainer."""
        _ORDER.pack_into(self._page, _ORDER_AT, time.monotonic(), seconds)

    def ends_at(self, gone_at: float) -> float:
        """When to end the shipper, if its trainer went away at that time."""
        ordered_at, seconds = _ORDER.unpack_from(self._page, _ORDER_AT)
        return float(max(gone_at, ordered_at) + (seconds if ordered_at else _SECONDS_WITHOUT_ORDER))
