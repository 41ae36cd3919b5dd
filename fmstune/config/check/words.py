"""Describe values and types in messages, in TOML's terms."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time
from typing import Any

from fmstune.config.check.annotations import literal_values, options_of
from fmstune.secrets.forms import REDACTED
from fmstune.secrets.names import is_secret_name
from fmstune.text import shown

_WORDS = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "dict": "a table",
    "Mapping": "a table",
    "list": "a list",
    "tuple": "a list",
    "Sequence": "a list",
}
_TABLES = {"str,str]": "a table of strings", "str,float]": "a table of numbers"}
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a number"),
    (str, "a string"),
    (Mapping, "a table"),
    ((list, tuple), "a list"),
    ((date, time), "a date or time"),
)


def kind_of(value: Any, *, inside: bool = False) -> str:
    """The kind of a value: `an integer`, `a string`; with `inside`, `a list of integers`."""
    word = next((word for kind, word in _KINDS if isinstance(value, kind)), "nothing")
    if not inside or not isinstance(value, (Mapping, list, tuple)) or not value:
        return word
    items = value.values() if isinstance(value, Mapping) else value
    kinds = dict.fromkeys(f"{kind_of(item).partition(' ')[2]}s" for item in items)
    return f"{word} of {' and '.join(kinds)}"


def in_words(annotation: str) -> str:
    """The kinds of values that an annotation accepts: `an integer or a string`."""
    words = []
    for option in options_of(annotation):
        base, _, inside = option.partition("[")
        if base == "Literal":
            words += [shown(value) for value in literal_values(option)]
        elif base in ("list", "tuple", "Sequence") and inside.startswith("str"):
            words.append("a list of strings")
        elif base in ("dict", "Mapping") and inside.replace(" ", "") in _TABLES:
            words.append(_TABLES[inside.replace(" ", "")])
        elif base not in ("None", "NoneType"):
            words.append(_WORDS.get(base, "a string"))
    return " or ".join(dict.fromkeys(words))


def shown_for(key: str, value: Any) -> str:
    """Format a value for a message; hidden if its key is that of a secret."""
    if is_secret_name(key):
        return REDACTED
    try:
        return shown(value)
    except ValueError:  # Python refuses to format integers with thousands of digits
        return "a huge number"
