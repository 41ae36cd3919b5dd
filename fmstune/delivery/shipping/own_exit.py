"""How a supervisor tells that its shipper ended by itself: the same exit code may be a tracker's."""

from __future__ import annotations

import contextlib
import os
import threading


class OwnExit:
    """The pipe through which a supervisor reports that its shipper ended by itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._identity = _identity(self._ours)
        self._own: bool | None = None

    def close_theirs(self) -> None:
        """Close the supervisor's end here: it has its own, or could not be started."""
        os.close(self.theirs)

    def is_own(self) -> bool:
        """Whether it reported that; call it once the process has ended."""
        with self._lock:
            if self._own is None:
                self._own = True  # when somebody has closed all files of this process, the code has to do
                with contextlib.suppress(OSError):
                    if _identity(self._ours) == self._identity:
                        self._own = self._read()
                        os.close(self._ours)
            return self._own

    def _read(self) -> bool:
        try:
            return os.read(self._ours, 1) != b""
        except BlockingIOError:  # nothing was said, and a child of this process has the other end too
            return False


def _identity(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino
