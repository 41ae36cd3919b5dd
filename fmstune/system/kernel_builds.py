"""torch's lock for compiling C++ or CUDA kernels, without stale locks of killed processes.

torch's lock is a file that the compiling process removes at the end. If that process is killed, the file
stays, and every later run that needs the kernels silently waits forever. Here the file records the process
that owns it, so that the next process removes a stale lock.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from pathlib import Path

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from fmstune.system.locks import Process, describe, folder_locked, owner, write_owner

_SECONDS_TO_REPORT = 20.0
_SECONDS_OF_A_CACHED_BUILD = 5.0


class BuildLock(FileBaton):  # type: ignore[misc]
    """torch's lock of a build folder, which becomes stale when its owner ends."""

    _notice: threading.Timer | None = None

    def try_acquire(self) -> bool:
        """Acquire the lock, after removing a stale one. If a running process holds it, wait for its build and
        return `False`."""
        path, reported, began = Path(self.lock_file_path), False, time.monotonic()
        while not super().try_acquire():
            if self._remove_stale(path):
                continue
            if not reported and time.monotonic() - began > _SECONDS_TO_REPORT:
                reported = True
                warnings.warn(_waiting(path, owner(path)), stacklevel=2)
            time.sleep(self.wait_seconds)
            if not path.exists():
                return False
        write_owner(path)
        # torch does not tell whether it compiles, or finds an earlier build.
        self._notice = threading.Timer(_SECONDS_OF_A_CACHED_BUILD, warnings.warn, (_compiling(path),))
        self._notice.daemon = True
        self._notice.start()
        return True

    def release(self) -> None:
        """Release the lock after the build."""
        if self._notice is not None:
            self._notice.cancel()
        super().release()

    def _remove_stale(self, path: Path) -> bool:
        if not owner(path).ended:
            return False
        # Serialised, so that no process removes the new lock of another one.
        with folder_locked(path.parent):
            if ended := owner(path).ended:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        return ended


def _compiling(path: Path) -> str:
    return f"compiling the kernels in {path.parent}, which takes minutes; later runs use them from there"


def _waiting(path: Path, process: Process) -> str:
    return (
        f"waiting for {describe(process)} that compiles the kernels in {path.parent}. If none does any more, "
        f"delete {path}"
    )


def use_build_lock() -> None:
    """Use this lock for everything that torch compiles in this process."""
    cpp_extension.FileBaton = BuildLock
