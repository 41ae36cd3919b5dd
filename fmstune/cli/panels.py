"""The style of the help: panels with groups of options on a terminal, plain text elsewhere.

The panels import a part of rich that nothing else needs; help that is piped into a pager, or read by a
program, stays fast and plain.
"""

from __future__ import annotations

import os
import sys
from typing import Literal


def _is_drawn() -> bool:
    try:
        return sys.stdout.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # a closed stream, or None
        return False


MARKUP: Literal["rich"] | None = "rich" if _is_drawn() else None
"""Typer's `rich_markup_mode`."""
