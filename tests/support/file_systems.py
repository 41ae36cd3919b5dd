"""File systems of a test's own."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CLONE_NEWNS = 0x00020000  # from linux/sched.h; `os.unshare` comes with Python 3.12


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A real file system in memory, with these options of tmpfs. Only this process and those that it starts
    have the mount, which ends with them. Skips the test where that is not allowed."""
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare") or libc.unshare(_CLONE_NEWNS):
        pytest.skip(f"mounting a file system is not allowed here: {os.strerror(ctypes.get_errno())}")
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting a file system is not allowed here: {done.stderr}")
    try:
        yield path
    finally:
        # Lazily: an error's traceback may hold the file that could not be written.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
