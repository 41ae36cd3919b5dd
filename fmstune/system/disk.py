"""Free disk space, and errors that mean that there is none."""

from __future__ import annotations

import errno
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from fmstune.access import lacks_inodes, nearest
from fmstune.system.memory import format_bytes

_TEXTS = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
}
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container.cc")
_NOTHING = 1 << 20


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a file could not be written for lack of space, and the remedy, as parts of a sentence.
    `of_one_file`: the limit is that of a single file, so fewer of them would not help."""

    what: str
    remedy: str
    of_one_file: bool = False


def free(path: Path) -> int | None:
    """The free bytes on the file system of `path`, which may not exist yet; `None` if it does not say."""
    try:
        found = shutil.disk_usage(nearest(path))
    except OSError:  # some mounted object stores
        return None
    return found.free if found.total else None


def shortage(error: BaseException, path: Path) -> Shortage | None:
    """Why `path` could not be written, if the disk is full, a quota is used up or the file would be too
    large. Libraries wrap such errors, and torch hides their cause."""
    found, left, limit = _number(error), free(path), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    limited = limit != resource.RLIM_INFINITY
    if found is None and any(text in str(error) for text in _TORCH_WRITES):
        found = errno.EFBIG if limited and (left is None or left > limit) else errno.ENOSPC
    if found is None and left is not None and left < _NOTHING:
        found = errno.ENOSPC
    if found == errno.ENOSPC and lacks_inodes(path):
        return Shortage("the file system has no room for more files (inodes)", "remove some files")
    if found == errno.EFBIG and limited:
        most = f"a file may not be larger than {format_bytes(limit)} here (ulimit -f)"
        return Shortage(most, "raise that limit", of_one_file=True)
    if found == errno.EFBIG:
        what = "the file system does not support files of this size"
        return Shortage(what, "use another --output-dir", of_one_file=True)
    if found == errno.EDQUOT:
        return Shortage("the disk quota is used up", "free some space")
    if not found:
        return None
    some = "" if left is None else f" ({format_bytes(left)} left)"
    return Shortage(f"the disk is full{some}", "free some space")


def _number(error: BaseException) -> int | None:
    """The errno of the error, or of one that it wraps, from its attribute or its message."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _TEXTS:
            return seen.errno
        named = next((number for number, text in _TEXTS.items() if text in str(seen)), None)
        if named is not None:
            return named
        seen = seen.__cause__ or seen.__context__
    return None
