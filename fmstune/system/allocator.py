"""Main memory that tensors leave is kept for those of the next step.

glibc gives each block of more than 32 MB back to the kernel as soon as it is free, and the next step gets it
with pages that the kernel has to clear again: of SmolLM2 with four rows, 238,000 pages a step, a twelfth of
its time. What is held at most stays the same: it is kept from one step to the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""
_MOST = (1 << 31) - 1
_AT_MOST_BY_ITSELF = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
"""Where glibc's own thresholds end, which rise with what a program frees."""


@contextlib.contextmanager
def freed_is_kept() -> Iterator[bool]:
    """Keep what is freed within, and give it back at the end; whether the allocator does. Not where the user
    has set it by variables of glibc's, nor with another C library."""
    library = None if _chosen_by_the_user() else _glibc()
    if library is None:
        yield False
        return
    for option in _AT_MOST_BY_ITSELF:
        library.mallopt(option, _MOST)
    try:
        yield True
    finally:
        for option, value in _AT_MOST_BY_ITSELF.items():
            library.mallopt(option, value)
        library.malloc_trim(0)


def _chosen_by_the_user() -> bool:
    return any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)


def _glibc() -> Any:
    """The C library of this process, if it is glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    named = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in named) else None
