"""The terminal that people read: standard error, plain where it is not a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, ConsoleDimensions


class _Screen(Console):
    @property
    def size(self) -> ConsoleDimensions:
        """Of the terminal that is written to: rich asks the standard streams, which may be others by now."""
        try:
            width, height = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError, AttributeError):
            return super().size
        if self._width is not None or self._height is not None or not width:  # COLUMNS, above all
            return super().size
        return ConsoleDimensions(width, height)

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        self._width, self._height = new

    def on_broken_pipe(self) -> None:
        """Rich would end the process; the reader has gone, and the command continues."""
        self.quiet = True


def screen(file: TextIO | None = None) -> Console:
    """A console on standard error, or on that as it was before it was taken. Honours NO_COLOR (rich does) and
    CI: no colour, nothing animated."""
    plain = bool(os.environ.get("CI")) or not (file or sys.stderr).isatty()
    return _Screen(file=file, stderr=True, force_terminal=False if plain else None, no_color=plain or None)


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A function `moved(label, done, total)` that shows bars on a terminal, and nothing elsewhere."""
    if not console.is_terminal:
        yield lambda label, done, total: None
        return
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True) as bars:

        def moved(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield moved
