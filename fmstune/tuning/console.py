"""What a person sees of a run, on standard error: labelled lines, plain where it is no terminal."""

from __future__ import annotations

from rich.console import Console

_LABEL = 8


class RunConsole:
    """Prints labelled lines; nothing on ranks other than zero."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def say(self, label: str, text: str) -> None:
        """One line: a label, padded, and a text."""
        if not self.quiet:
            self.console.print(f"{label:<{_LABEL}} {text}", highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that should be seen."""
        if not self.quiet:
            line = f"{'warning':<{_LABEL}} {text}"
            self.console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
