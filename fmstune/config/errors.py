"""The error of this room, and how what was typed is written in its messages."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmstune.secrets import hide_forms

_LONGEST = 60
_LONGEST_PATH = 100
_TOLD = 3  # more problems are no short paragraph


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


def shown_path(path: Path) -> str:
    """A path as messages show it."""
    return shortened(str(path), _LONGEST_PATH)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """The text without its middle, when it is long; first without secrets, which can't be seen in halves."""
    text = hide_forms(text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half + 1 :]}"


def together(problems: Sequence[str]) -> ConfigError:
    """One error for several problems: the first of them, and how many more there are."""
    more = len(problems) - _TOLD
    rest = [f"There {'is 1 problem' if more == 1 else f'are {more} problems'} more."] * (more > 0)
    return ConfigError(" ".join([*problems[:_TOLD], *rest]))
