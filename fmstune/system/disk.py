"""How much room a disk has, and whether an error means that it has none."""

from __future__ import annotations

import errno
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from fmstune.system.memory import amount

_TEXTS = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
}
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container.cc")
_NOTHING = 1 << 20


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a file could not be written for want of room, and what helps, as parts of a sentence."""

    what: str
    remedy: str


def free(path: Path) -> int:
    """The bytes that can still be written where `path` is, or will be."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def shortage(error: BaseException, path: Path) -> Shortage | None:
    """What kept `path` from being written, if it is that the disk has no room, a quota is used up or a file
    would be larger than is allowed. Libraries wrap such errors, and torch hides their cause."""
    found, left, limit = _number(error), free(path), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    limited = limit != resource.RLIM_INFINITY
    if found is None and any(text in str(error) for text in _TORCH_WRITES):
        found = errno.EFBIG if limited and left > limit else errno.ENOSPC
    if found is None and left < _NOTHING:
        found = errno.ENOSPC
    if found == errno.EFBIG and limited:
        most = f"a file may not be larger than {amount(limit)} here (ulimit -f)"
        return Shortage(most, "raise that limit")
    if found == errno.EFBIG:
        return Shortage("the file system takes no file as large as this", "give another --output-dir")
    if found == errno.EDQUOT:
        return Shortage("the disk quota is used up", "free some space")
    return Shortage(f"the disk is full ({amount(left)} left)", "free some space") if found else None


def _number(error: BaseException) -> int | None:
    """The number of the error, or of one that it wraps, by itself or by its text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _TEXTS:
            return seen.errno
        named = next((number for number, text in _TEXTS.items() if text in str(seen)), None)
        if named is not None:
            return named
        seen = seen.__cause__ or seen.__context__
    return None
