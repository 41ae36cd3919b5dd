"""The end of a process of several, without the interpreter's teardown."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys


class Teardown:
    """Once this process has ended its work, and all that is registered with `atexit` later than this is done,
    leave at once.

    Threads of gloo hold tensors, as long as a model's `DistributedDataParallel` is there also after
    `destroy_process_group`. Where the interpreter is taken apart under them, they now and then abort the
    process, and torchrun takes a run that has succeeded for a failure
    (https://github.com/pytorch/pytorch/pull/179291).
    """

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._leave)  # the first to be registered is the last to be called

    def skip_with(self, code: object) -> None:
        """Leave with this exit code, as `sys.exit` takes it."""
        self._code = code if isinstance(code, int) else int(code is not None)

    def _leave(self) -> None:
        if self._code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self._code & 0xFF)
