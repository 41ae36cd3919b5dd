"""What a person sees of a run, on standard error: labelled lines, plain where it is no terminal."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from fmstune.secrets.redaction import hide

LABEL = 8
"""So wide are the labels."""


class RunConsole:
    """Prints labelled lines, without secrets; nothing on ranks other than zero.

    A screen that is gone (a full disk under a log file, a pipe that nobody reads) ends no training.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def say(self, label: str, text: str) -> None:
        """One line: a label, padded, and a text."""
        self._print(f"{label:<{LABEL}} {text}")

    def warn(self, text: str) -> None:
        """One line that should be seen."""
        self._print(f"{'warning':<{LABEL}} {text}", style="yellow")

    def phase(self, name: str, total: int | None = None) -> None:
        """From here on the run does this, in `total` parts where that is known: for consoles that show it."""

    def moved(self, done: int, total: int | None = None) -> None:
        """So many parts of it are done."""

    def logged(self, stage: str, step: int, steps: int, values: Mapping[str, float], line: str) -> None:
        """Figures of a stage were logged; `line` has the most important ones, for people."""
        self.say("eval" if stage == "eval" else "step", f"{step}/{steps}  {line}")

    def begin(self, directory: Path) -> None:
        """The journal of the run in a directory has been begun: for consoles that follow it."""

    def end(self, directory: Path) -> None:
        """The run in a directory has ended, and its journal is whole: for consoles that sum it up."""

    def _print(self, line: str, style: str | None = None) -> None:
        if not self.quiet:
            with contextlib.suppress(OSError, ValueError):
                text = hide(line)
                if self.console.is_terminal and len(text) > self.console.width and not _holds_command(text):
                    text = textwrap.fill(
                        text, max(self.console.width, 2 * LABEL), subsequent_indent=" " * (LABEL + 1),
                        break_long_words=False, break_on_hyphens=False, replace_whitespace=False,
                    )  # fmt: skip
                if style is None and _is_plain(text) and _is_bare(self.console):
                    # As rich prints it, whose layout takes 0.4 ms: a fiftieth of a step of the demo.
                    self.console.file.write(text + "\n")
                    self.console.file.flush()
                    return
                self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _is_plain(text: str) -> bool:
    """Whether rich has nothing to do in a text: no control characters to leave out, and no `:names:` of
    pictures, tabs or line ends."""
    return text.isprintable() and text.isascii() and ":" not in text


def _is_bare(console: Console) -> bool:
    return not (console.is_terminal or console.record or console.quiet)


def _holds_command(text: str) -> bool:
    """Whether somebody may paste a part of it: what a terminal itself has broken, it gives back as one."""
    return "`" in text or "fmstune " in text or text.startswith("open ")


_watching: RunConsole | None = None


@contextlib.contextmanager
def watched_by(out: RunConsole) -> Iterator[None]:
    """What is done in this block is shown on a console: `phase` and `moved` get there from any depth."""
    global _watching
    before, _watching = _watching, out
    try:
        yield
    finally:
        _watching = before


def phase(name: str, total: int | None = None) -> None:
    """What the run in this process does from here on, if anybody watches it."""
    if _watching is not None:
        _watching.phase(name, total)


def moved(done: int, total: int | None = None) -> None:
    """So many parts of it are done."""
    if _watching is not None:
        _watching.moved(done, total)
