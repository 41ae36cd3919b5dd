"""The console of a run, on standard error: labelled lines, without colour unless it is a terminal."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from fmstune.secrets.redaction import hide

LABEL = 8
"""The width of the labels, in columns."""


class RunConsole:
    """Prints labelled lines with secrets hidden; nothing on ranks other than zero.

    Output that cannot be written (a full disk under a log file, a closed pipe) does not end the training.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def say(self, label: str, text: str) -> None:
        """Print one line: a padded label and a text."""
        self._print(f"{label:<{LABEL}} {text}")

    def warn(self, text: str) -> None:
        """Print one line as a warning."""
        self._print(f"{'warning':<{LABEL}} {text}", style="yellow")

    def phase(self, name: str, total: int | None = None) -> None:
        """Start a phase, of `total` parts if known: for consoles that show progress."""

    def moved(self, done: int, total: int | None = None) -> None:
        """Report that `done` parts of the current phase are complete."""

    def logged(self, stage: str, step: int, steps: int, values: Mapping[str, float], line: str) -> None:
        """Report logged metrics of a stage; `line` shows the most important ones."""
        self.say("eval" if stage == "eval" else "step", f"{step}/{steps}  {line}")

    def begin(self, directory: Path) -> None:
        """Report that a run's journal was created in `directory`: for consoles that follow it."""

    def end(self, directory: Path) -> None:
        """Report that the run in `directory` has ended and its journal is complete: for consoles that
        summarise it."""

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
                    # The same output without rich's layout, which takes 0.4 ms: a fiftieth of a demo step.
                    self.console.file.write(text + "\n")
                    self.console.file.flush()
                    return
                self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _is_plain(text: str) -> bool:
    """Whether rich would print a text unchanged: no control characters, emoji codes (`:name:`), tabs or line
    breaks."""
    return text.isprintable() and text.isascii() and ":" not in text


def _is_bare(console: Console) -> bool:
    return not (console.is_terminal or console.record or console.quiet)


def _holds_command(text: str) -> bool:
    """Whether a user may copy a command from it: text wrapped by the terminal itself is copied as one
    line."""
    return "`" in text or "fmstune " in text or text.startswith("open ")


_watching: RunConsole | None = None


@contextlib.contextmanager
def watched_by(out: RunConsole) -> Iterator[None]:
    """Show the progress of this block on a console: `phase` and `moved` reach it from any depth."""
    global _watching
    before, _watching = _watching, out
    try:
        yield
    finally:
        _watching = before


def phase(name: str, total: int | None = None) -> None:
    """Start a phase of this process's run, for the console that watches it, if any."""
    if _watching is not None:
        _watching.phase(name, total)


def moved(done: int, total: int | None = None) -> None:
    """Report that `done` parts of the current phase are complete."""
    if _watching is not None:
        _watching.moved(done, total)
