"""How the help is drawn: in panels on a terminal, with groups of options; elsewhere as plain text.

Drawing takes a part of rich that nothing else needs, so that a help that is piped into a pager, or read by a
program, stays as quick and as plain as it was.
"""

from __future__ import annotations

import os
import sys
from typing import Literal


def _is_drawn() -> bool:
    try:
        return sys.stdout.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # a stream that was closed, or is none
        return False


MARKUP: Literal["rich"] | None = "rich" if _is_drawn() else None
"""What Typer gets as `rich_markup_mode`."""
