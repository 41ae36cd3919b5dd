"""Where files can be written, writing small ones whole (a reader sees the old text or the new one), and
reading those that somebody may have put something else in the place of."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import IO


def replace_text(path: Path, text: str) -> None:
    """Replace the file at `path` by one with `text`, atomically. Raises `OSError`, and keeps the old file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # a full disk leaves an empty file
            temporary.unlink(missing_ok=True)
        raise


class NotAFile(OSError):
    """A pipe, a socket or a device, or links in a circle, where a file should be."""


def open_file(path: Path) -> IO[bytes]:
    """The file at `path`, to be read. Never waits: a pipe would, for somebody who writes to it. Raises
    `NotAFile`, `IsADirectoryError`, or another `OSError`."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket; links in a circle
            raise NotAFile(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    mode = os.fstat(opened).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(opened, "rb")
    os.close(opened)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NotAFile(errno.EINVAL, "not a regular file", str(path))


def read_text(path: Path) -> str:
    """The text of the file at `path`, which is UTF-8. Raises what `open_file` does, and `ValueError`."""
    with open_file(path) as file:
        return file.read().decode("utf-8")


_OF_THE_KERNEL = (Path("/proc"), Path("/sys"))


def takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder, which its permissions do not show to root: `/proc` and `/sys`
    take none, nor does a file system that is mounted read-only. Leaves nothing behind."""
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        return False
    if folder.stat().st_dev in {place.stat().st_dev for place in _OF_THE_KERNEL if place.is_mount()}:
        return False
    try:
        # A file without a name is never seen by anybody. NFS and others have none, which says nothing.
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return error.errno not in (errno.EROFS, errno.EPERM, errno.EACCES)
    return True


def cache_folder() -> Path:
    """Where what can be made again is kept: `FMSTUNE_CACHE`, else `fmstune` in the user's cache directory."""
    if chosen := os.environ.get("FMSTUNE_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "fmstune"
    try:
        return Path.home() / ".cache" / "fmstune"
    except RuntimeError:  # a user without a name, as containers have, and no HOME
        return Path(os.devnull, "fmstune")  # where nothing can be kept
