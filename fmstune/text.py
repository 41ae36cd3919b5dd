"""Words and values as messages write them."""

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
    """A value as messages show it: on one line, and not longer than they are."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return shortened(repr(value))


def shown_key(*parts: str) -> str:
    """A dotted key as TOML writes it: parts that are no plain words are quoted."""
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else f'"{part}"' for part in map(shortened, parts))


def shown_path(path: Path) -> str:
    """A path as messages show it."""
    return shortened(str(path), _LONGEST_PATH)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """The text without its middle, when it is long; first without secrets, which can't be seen in halves."""
    text = hide_forms(text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half + 1 :]}"


def counted(number: int, thing: str, things: str | None = None) -> str:
    """How many there are of a thing: `1 row`, `2,000 rows`; `things` where that is not `thing` with an s."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def listed(choices: Sequence[str]) -> str:
    """The choices; of very many (optimizers) the first."""
    if len(choices) <= 15:
        return ", ".join(choices)
    return f"{', '.join(choices[:6])} and {len(choices) - 6} others"


def in_series(names: Sequence[str]) -> str:
    """Names as a sentence has them: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def first_line(error: BaseException) -> str:
    """The first line of an error's text, which a library may give many of; its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
