"""Makes a picture of what a terminal shows, as README has one of a run:

tmux new-session -d -x 92 -y 40 && tmux send-keys "fmstune train --tracker aim --max-steps 400" Enter
tmux capture-pane -e -p | python docs/terminal_picture.py > docs/live.svg
"""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

_FETCHED = re.compile(r"@font-face \{.*?\}\s*", re.S)
"""Fonts from elsewhere, which a picture in a page may not ask for."""


def picture(shown: str, title: str) -> str:
    """An SVG of lines with a terminal's escape sequences."""
    text = Text.from_ansi(shown.rstrip())
    width = max(line.cell_len for line in text.split("\n"))
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(text, no_wrap=True)
    return _FETCHED.sub("", console.export_svg(title=title, theme=MONOKAI, unique_id="fmstune"))


if __name__ == "__main__":
    sys.stdout.write(picture(sys.stdin.read(), "fmstune train --tracker aim --max-steps 400"))
