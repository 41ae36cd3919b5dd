"""The error of this room, and how what was typed is written in its messages."""

from __future__ import annotations

import datetime
import re
from typing import Any

_LONGEST = 60


class ConfigError(Exception):
    """A wrong command line or configuration. The message is one short paragraph: what is wrong, where,
    and what to do."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        # Keys and file names may hold anything; a line break or an escape sequence is shown, not obeyed.
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in message))


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


def shortened(text: str) -> str:
    """The text without its middle, when it is long."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half + 1 :]}"
