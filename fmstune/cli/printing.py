"""Printing for the commands about runs: without secrets and terminal escape sequences."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fmstune.report.replay import Replay
    from fmstune.report.summary import RunDetail


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, which must be printable."""
    from fmstune.secrets.redaction import hide

    typer.echo(hide("\n".join(lines)))


def print_json(value: Any) -> None:
    """Print strict JSON: non-finite numbers are strings, as in the journal."""
    from fmstune.report.words import strict
    from fmstune.secrets.redaction import process_redactor

    typer.echo(json.dumps(strict(process_redactor().value(value, tracked=True)), indent=2, default=str))


def visible(text: str) -> str:
    """Make a user-chosen string safe to print."""
    from fmstune.report.words import printable
    from fmstune.secrets.redaction import hide

    return hide(printable(text))


def warn_unread(directory: Path, run: Replay | RunDetail) -> None:
    """Warn about what could not be read of a run's journal: the command's result is without it."""
    from fmstune.report.summary import unread

    if found := unread(run):
        typer.echo(visible(f"warning  {directory}: its journal has {', '.join(found)}"), err=True)


def terminal_width() -> int | None:
    """The width of the terminal on standard output, in columns; `None` if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
