"""How messages speak of values and types, in the words of somebody who writes TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any

import tomli

from fmstune.config.annotations import literal_values, options_of
from fmstune.config.errors import shown

_SECRET = re.compile(r"secret|password|api_?key|credential|(?<!eos_)(?<!pad_)token$", re.IGNORECASE)
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


def kind_of(value: Any) -> str:
    """What a value is: `a whole number`, `a text`."""
    return next((word for kind, word in _KINDS if isinstance(value, kind)), "nothing")


def in_words(annotation: str) -> str:
    """What an annotation takes: `a whole number or a text`."""
    words = []
    for option in options_of(annotation):
        base, _, inside = option.partition("[")
        if base == "Literal":
            words += [shown(value) for value in literal_values(option)]
        elif base in ("list", "tuple", "Sequence") and inside.startswith("str"):
            words.append("a list of texts")
        elif base not in ("None", "NoneType"):
            words.append(_WORDS.get(base, "a text"))
    return " or ".join(dict.fromkeys(words))


def is_secret(key: str) -> bool:
    """Whether the value of a key is not for anybody's eyes, by its name."""
    return _SECRET.search(key) is not None


def shown_for(key: str, value: Any) -> str:
    """A value in a message: hidden when its key says that it is a secret."""
    if is_secret(key):
        return "[redacted]"
    try:
        return shown(value)
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "a huge number"


def listed(choices: Sequence[str]) -> str:
    """The choices; of very many (optimizers) the first."""
    if len(choices) <= 15:
        return ", ".join(choices)
    return f"{', '.join(choices[:6])} and {len(choices) - 6} others"


def advice(value: Any, annotation: str, where: str, key: str) -> str:
    """How to write a value that is nearly right, as a sentence with a space before it, or nothing."""
    wanted = in_words(annotation)
    if isinstance(value, str):
        text = value.strip()
        if "true or false" in wanted and text.lower() in ("true", "false", "yes", "no", "on", "off"):
            return f" Write {'true' if text.lower() in ('true', 'yes', 'on') else 'false'}."
        if len(text) < 30 and re.fullmatch(_NUMBERS["a number" in wanted], text) and "number" in wanted:
            return " Write it without quotes." if _is_toml(text) else f" Write {float(text):g}."
        if "a list of" in wanted:
            plain = len(text) < 30 and text.isprintable() and not set(text) & {'"', "\\"}
            return f' Write ["{text}"].' if plain and not is_secret(key) else " Put it in [ ]."
    elif wanted.endswith("a text") and not isinstance(value, (Mapping, list, tuple)):
        # The shell takes the outer quotes away.
        text = "…" if is_secret(key) else shown(value)
        return f""" Write '{key}="{text}"'.""" if where == "--set" else " Put it in quotes."
    return ""


_NUMBERS = (r"[+-]?\d+", r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # whole ones, and any


def _is_toml(text: str) -> bool:
    try:
        tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError:
        return False
    return True
