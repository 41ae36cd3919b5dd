"""The console on standard error: with colour and progress bars only on a terminal."""

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
        """The size of the terminal written to: rich queries the standard streams, which may be redirected."""
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
        """Continue without the reader; rich would end the process."""
        self.quiet = True


def screen(file: TextIO | None = None) -> Console:
    """A console on standard error, or on `file`: the original stream after a redirect. Honours NO_COLOR (rich
    does) and CI: no colour, no animation."""
    plain = bool(os.environ.get("CI")) or not (file or sys.stderr).isatty()
    return _Screen(file=file, stderr=True, force_terminal=False if plain else None, no_color=plain or None)


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function `moved(label, done, total)` that draws progress bars on a terminal, and is a no-op
    elsewhere."""
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
