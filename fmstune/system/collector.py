"""Tune Python's garbage collector for the import of libraries.

It traverses all objects (two million with torch and transformers) repeatedly, which takes a fifth of the
import time, although all of them stay alive.
"""

from __future__ import annotations

import gc

_AT_IMPORTS = (100_000, 50, 100)
_usual: tuple[int, int, int] | None = None


def collect_rarely() -> None:
    """Make it run a hundredth as often, until `imports_done`. Only for fmstune's own process: a program
    that calls fmstune may rely on its settings."""
    global _usual
    if _usual is None:
        _usual = gc.get_threshold()
        gc.set_threshold(*_AT_IMPORTS)


def imports_done() -> None:
    """Exclude existing objects from collection, which accelerate would otherwise traverse at the start of
    each training (0.4 s), and restore the usual thresholds. A no-op without `collect_rarely`."""
    global _usual
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)
        _usual = None
