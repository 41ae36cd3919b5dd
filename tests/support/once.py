"""Makes what is expensive once for all processes of a session, to be copied."""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

SHARED = "PYTEST_SHARED_FOLDER"
"""The variable with the path of a folder that all workers of a session share, removed at its end."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, which `make` filled."""
    folder = Path(os.environ.get(SHARED) or _own(), name)
    with open(folder.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            begun = Path(tempfile.mkdtemp(dir=folder.parent))
            make(begun)
            begun.rename(folder)
    return folder


@functools.cache
def _own() -> str:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name
