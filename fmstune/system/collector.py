"""Python's garbage collector while libraries are imported.

It looks through the objects that are there, two million with torch and transformers, again and again, for a
fifth of the time that these imports take; and all of them stay.
"""

from __future__ import annotations

import gc

_AT_IMPORTS = (100_000, 50, 100)
_usual: tuple[int, int, int] | None = None


def look_seldom() -> None:
    """Let it run a hundredth as often, until `all_is_imported`. For a process that is fmstune's own: a
    program that calls fmstune may count on its settings."""
    global _usual
    if _usual is None:
        _usual = gc.get_threshold()
        gc.set_threshold(*_AT_IMPORTS)


def all_is_imported() -> None:
    """What is there by now stays to the end and is not looked through any more, as accelerate has it done at
    the start of each training (0.4 s); what comes from now on is, as often as usual. Without `look_seldom` it
    does nothing."""
    global _usual
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)
        _usual = None
