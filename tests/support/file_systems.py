"""File systems of a test's own."""

from __future__ import annotations

import ctypes
import os
import shutil
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
    with _mount(path, "-t", "tmpfs", "-o", options, "tmpfs"):
        yield path


@contextmanager
def disk(path: Path, image: Path) -> Iterator[Path]:
    """Like `mounted`, for a disk of 40 MB with ext4, whose contents are in the file `image`."""
    with image.open("wb") as file:
        file.truncate(40 << 20)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with _mount(path, "-o", "loop", str(image)):
        yield path


def cut_power(image: Path, copy: Path) -> None:
    """Copy what a power cut at this moment would leave of the disk in `image`: what the system has not yet
    written is only in memory."""
    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)


@contextmanager
def after_power_cut(copy: Path, path: Path) -> Iterator[Path]:
    """The disk that `cut_power` has copied, mounted at `path`."""
    with _mount(path, "-o", "loop", str(copy)):
        yield path


@contextmanager
def _mount(path: Path, *how: str) -> Iterator[None]:
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare") or libc.unshare(_CLONE_NEWNS):
        pytest.skip(f"mounting a file system is not allowed here: {os.strerror(ctypes.get_errno())}")
    for command in (["mount", "--make-rprivate", "/"], ["mount", *how, str(path)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting a file system is not allowed here: {done.stderr}")
    try:
        yield
    finally:
        # Lazily: an error's traceback may hold the file that could not be written.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
