"""Let only a living process keep others from compiling a library's C++ or CUDA kernels.

torch marks a build with a file that its process removes at the end. If that process is killed, the file
stays, and every later run that needs the kernels waits for it, forever and without a word. Here the file
names its process, so that the next one takes over from a dead one.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from pathlib import Path

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from fmstune.system.locks import Process, folder_held, named, sign, signer

_SECONDS_TO_REPORT = 20.0
_SECONDS_OF_A_CACHED_BUILD = 5.0


class BuildLock(FileBaton):  # type: ignore[misc]
    """torch's lock of a build folder, which ends with its process."""

    _notice: threading.Timer | None = None

    def try_acquire(self) -> bool:
        """Take the lock, also from a process that has ended. If another one holds it, wait for its build and
        return `False`."""
        path, reported, began = Path(self.lock_file_path), False, time.monotonic()
        while not super().try_acquire():
            if self._removed_of_dead(path):
                continue
            if not reported and time.monotonic() - began > _SECONDS_TO_REPORT:
                reported = True
                warnings.warn(_waiting(path, signer(path)), stacklevel=2)
            time.sleep(self.wait_seconds)
            if not path.exists():
                return False
        sign(path)
        # torch does not tell whether it compiles, or finds an earlier build.
        self._notice = threading.Timer(_SECONDS_OF_A_CACHED_BUILD, warnings.warn, (_compiling(path),))
        self._notice.daemon = True
        self._notice.start()
        return True

    def release(self) -> None:
        """Give the lock back after the build."""
        if self._notice is not None:
            self._notice.cancel()
        super().release()

    def _removed_of_dead(self, path: Path) -> bool:
        if not signer(path).ended:
            return False
        # In turn, so that none removes the lock of a process that has just taken over.
        with folder_held(path.parent):
            if ended := signer(path).ended:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        return ended


def _compiling(path: Path) -> str:
    return f"compiling the kernels in {path.parent}, which takes minutes; later runs use them from there"


def _waiting(path: Path, process: Process) -> str:
    return (
        f"waiting for {named(process)} that compiles the kernels in {path.parent}. If none does any more, "
        f"delete {path}"
    )


def end_builds_with_their_process() -> None:
    """Use this lock for what torch compiles in this process from now on."""
    cpp_extension.FileBaton = BuildLock
