"""How much room a disk has, and whether an error means that it has none."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container.cc")
_NOTHING = 1 << 20


def free(path: Path) -> int:
    """The bytes that can still be written where `path` is, or will be."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def is_full(error: BaseException, path: Path) -> bool:
    """Whether writing to `path` failed since the disk has no room, a quota is used up or a file would be
    larger than is allowed. Libraries wrap such errors, and torch hides their cause."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if any(text in str(seen) for text in _FULL_TEXTS):
            return True
        seen = seen.__cause__ or seen.__context__
    return any(text in str(error) for text in _TORCH_WRITES) or free(path) < _NOTHING
