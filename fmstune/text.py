"""Format words and values for messages."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmstune.secrets.forms import hide_forms

_LONGEST = 60
_LONGEST_PATH = 100


def shown(value: Any) -> str:
    """Format a value for a message: on one line, shortened if it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return shortened(repr(list(value) if isinstance(value, tuple) else value))


def shown_key(*parts: str) -> str:
    """Format a dotted key as in TOML: parts that are not bare keys are quoted."""
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else f'"{part}"' for part in map(shortened, parts))


def shown_path(path: Path) -> str:
    """Format a path for a message."""
    return shortened(str(path), _LONGEST_PATH)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Cut the middle out of a long text. Secrets are hidden first: half a secret would not be recognised."""
    text = hide_forms(text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half + 1 :]}"


def counted(number: int, thing: str, things: str | None = None) -> str:
    """Format a count: `1 row`, `2,000 rows`; `things` is for irregular plurals."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def listed(choices: Sequence[str]) -> str:
    """List the choices; only the first few of very many (such as optimizers)."""
    if len(choices) <= 15:
        return ", ".join(choices)
    return f"{', '.join(choices[:6])} and {len(choices) - 6} others"


def in_series(names: Sequence[str]) -> str:
    """Join names for a sentence: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, which may have many; its class name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
