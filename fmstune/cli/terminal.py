"""The terminal that people read: standard error, plain where it is not a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process; the reader has gone, and the command continues."""
        self.quiet = True


def screen() -> Console:
    """A console on standard error. Honours NO_COLOR (rich does) and CI: no colour, nothing animated."""
    plain = bool(os.environ.get("CI")) or not sys.stderr.isatty()
    return _Screen(stderr=True, force_terminal=False if plain else None, no_color=plain or None)


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
