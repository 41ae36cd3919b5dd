"""What the commands about runs print: without secrets, and with nothing that a terminal would obey."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from typing import Any

import typer


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, each of which is printable."""
    from fmstune.secrets.redaction import hide

    typer.echo(hide("\n".join(lines)))


def print_json(value: Any) -> None:
    """Print strict JSON: numbers that are not finite are texts, as in the journal."""
    from fmstune.report.words import strict
    from fmstune.secrets.redaction import process_redactor

    typer.echo(json.dumps(strict(process_redactor().value(value, tracked=True)), indent=2, default=str))


def visible(text: str) -> str:
    """A text that somebody has chosen, as it may be printed."""
    from fmstune.report.words import printable
    from fmstune.secrets.redaction import hide

    return hide(printable(text))


def terminal_width() -> int | None:
    """The width of the terminal that standard output is; `None` when it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
