"""What a shipper and its supervisor tell each other."""

from __future__ import annotations

import mmap
import struct
import time

_SECONDS_WITHOUT_ORDER = 30.0
"""So long a shipper may take to read its order when its trainer is gone already."""
_ORDER, _ORDER_AT = struct.Struct("=dd"), 8
_LOG_READER, _LOG_READER_AT = struct.Struct("=q"), 24
_END, _END_AT = struct.Struct("=q"), 32


class TrainerWatch:
    """What supervisor and shipper tell each other, in memory that both see: no SDK can close it.

    Its first byte is the supervisor's, what follows is the shipper's.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def gone(self) -> bool:
        """Whether the process that has started the shipper has ended."""
        return self._page[0] != 0

    @property
    def log_reader(self) -> int:
        """The process that reads what the shipper prints, down to its last words; 0 when there is none."""
        return int(_LOG_READER.unpack_from(self._page, _LOG_READER_AT)[0])

    def note_log(self, reader: int) -> None:
        """Tell the supervisor which process reads what the shipper prints."""
        _LOG_READER.pack_into(self._page, _LOG_READER_AT, reader)

    @property
    def end(self) -> int:
        """The exit code that the shipper itself has chosen; 0 when it has not come to an end."""
        return int(_END.unpack_from(self._page, _END_AT)[0])

    def note_end(self, code: int) -> None:
        """Tell the supervisor that the shipper itself ends now, and not its tracker."""
        _END.pack_into(self._page, _END_AT, code)

    def note_gone(self) -> None:
        """Tell the shipper that nobody writes the journal any more."""
        self._page[0] = 1

    def allow(self, seconds: float) -> None:
        """Have the shipper ended so long after its trainer."""
        _ORDER.pack_into(self._page, _ORDER_AT, time.monotonic(), seconds)

    def ends_at(self, gone_at: float) -> float:
        """When the shipper is to be ended, if its trainer has gone at that time."""
        ordered_at, seconds = _ORDER.unpack_from(self._page, _ORDER_AT)
        return float(max(gone_at, ordered_at) + (seconds if ordered_at else _SECONDS_WITHOUT_ORDER))
