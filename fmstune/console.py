"""What a person sees of a run, on standard error: labelled lines, plain where it is no terminal."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rich.console import Console

from fmstune.secrets.redaction import hide

_LABEL = 8


class RunConsole:
    """Prints labelled lines, without secrets; nothing on ranks other than zero.

    A screen that is gone (a full disk under a log file, a pipe that nobody reads) ends no training.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def say(self, label: str, text: str) -> None:
        """One line: a label, padded, and a text."""
        self._print(f"{label:<{_LABEL}} {text}")

    def warn(self, text: str) -> None:
        """One line that should be seen."""
        self._print(f"{'warning':<{_LABEL}} {text}", style="yellow")

    def end(self, directory: Path) -> None:
        """The run in a directory has ended, and its journal is whole: for consoles that sum it up."""

    def _print(self, line: str, style: str | None = None) -> None:
        if not self.quiet:
            with contextlib.suppress(OSError, ValueError):
                self.console.print(hide(line), style=style, highlight=False, markup=False, soft_wrap=True)
