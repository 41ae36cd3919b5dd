"""Exit one of several processes without the interpreter's teardown."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys


class Teardown:
    """Exit immediately once the work is done and all `atexit` functions registered after this one have run.

    Threads of gloo hold tensors as long as a model's `DistributedDataParallel` exists, even after
    `destroy_process_group`. If the interpreter is torn down meanwhile, they sometimes abort the process, and
    torchrun reports a successful run as failed (https://github.com/pytorch/pytorch/pull/179291).
    """

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._leave)  # the first one registered is called last

    def skip_with(self, code: object) -> None:
        """Exit with this code, in the form that `sys.exit` takes."""
        self._code = code if isinstance(code, int) else int(code is not None)

    def _leave(self) -> None:
        if self._code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self._code & 0xFF)
