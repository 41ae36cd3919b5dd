"""Where files can be written, and writing small ones whole: a reader sees the old text or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


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
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmstune"
