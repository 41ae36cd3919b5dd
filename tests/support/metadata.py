"""Caches the metadata of packages, which Python parses at each call, in a millisecond.

accelerate asks for that of PEFT and of datasets some 25 times per training and four times per eval, and a run
reads the versions of the packages that it uses.
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

_ASKED = ("metadata", "version")


def read_once() -> None:
    """Have this process and its forks read the metadata of each package once."""
    for name in _ASKED:
        asked: Any = getattr(importlib.metadata, name)
        if not hasattr(asked, "cache_clear"):
            setattr(importlib.metadata, name, functools.cache(asked))


def forget() -> None:
    """Clear the cache, because other packages may be found from here on."""
    for name in _ASKED:
        asked: Any = getattr(importlib.metadata, name)
        if hasattr(asked, "cache_clear"):
            asked.cache_clear()
