"""How messages speak of values and types, in the words of somebody who writes TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any

from fmstune.config.annotations import literal_values, options_of
from fmstune.config.errors import shown
from fmstune.secrets import REDACTED, is_secret_name

_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "dict": "a table",
    "Mapping": "a table",
    "list": "a list",
    "tuple": "a list",
    "Sequence": "a list",
}
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a truth value"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a text"),
    (Mapping, "a table"),
    ((list, tuple), "a list"),
    ((date, time), "a date or time"),
)


def kind_of(value: Any, *, inside: bool = False) -> str:
    """What a value is: `a whole number`, `a text`; with what is `inside`, `a list of whole numbers`."""
    word = next((word for kind, word in _KINDS if isinstance(value, kind)), "nothing")
    if not inside or not isinstance(value, (Mapping, list, tuple)) or not value:
        return word
    items = value.values() if isinstance(value, Mapping) else value
    kinds = dict.fromkeys(f"{kind_of(item).removeprefix('a ')}s" for item in items)
    return f"{word} of {' and '.join(kinds)}"


def in_words(annotation: str) -> str:
    """What an annotation takes: `a whole number or a text`."""
    words = []
    for option in options_of(annotation):
        base, _, inside = option.partition("[")
        if base == "Literal":
            words += [shown(value) for value in literal_values(option)]
        elif base in ("list", "tuple", "Sequence") and inside.startswith("str"):
            words.append("a list of texts")
        elif base in ("dict", "Mapping") and inside.replace(" ", "") == "str,str]":
            words.append("a table of texts")
        elif base not in ("None", "NoneType"):
            words.append(_WORDS.get(base, "a text"))
    return " or ".join(dict.fromkeys(words))


def shown_for(key: str, value: Any) -> str:
    """A value in a message: hidden when its key says that it is a secret."""
    if is_secret_name(key):
        return REDACTED
    try:
        return shown(value)
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "a huge number"


def counted(number: int, thing: str, things: str | None = None) -> str:
    """How many there are of a thing: `1 row`, `2,000 rows`; `things` where that is not `thing` with an s."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def listed(choices: Sequence[str]) -> str:
    """The choices; of very many (optimizers) the first."""
    if len(choices) <= 15:
        return ", ".join(choices)
    return f"{', '.join(choices[:6])} and {len(choices) - 6} others"
