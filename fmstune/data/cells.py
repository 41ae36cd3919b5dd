"""Values in files: lists and objects as text in a cell, and a value's type in words."""

from __future__ import annotations

import ast
import json
from typing import Any

from fmstune.errors import DataError


def parsed(value: Any) -> Any:
    """A list or an object that is written as JSON, or as Python prints it, as tables without lists store it;
    any other value unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(_with_commas(value.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    return found if isinstance(found, (list, dict)) else value


def loaded(value: Any, where: str) -> Any:
    """The value of a JSON text; any other value unchanged. Raises `DataError` for a key that occurs twice
    with different values, of which JSON parsers keep the last."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, each in pairs:
            if key in made and made[key] != each:
                raise DataError(f"{where} has the key `{key}` twice, with different values; remove one.")
            made[key] = each
        return made

    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return value


def as_boolean(value: Any) -> bool | None:
    """A value as a boolean, also from text, as in tables without types; `None` if it is neither."""
    if isinstance(value, (bool, int, float)):
        return bool(value) if value in (0, 1) else None
    words = {"true": True, "false": False, "1": True, "0": False}
    return words.get(value.strip().lower().removesuffix(".0")) if isinstance(value, str) else None


def _with_commas(text: str) -> str:
    """The text with a comma between consecutive objects: NumPy, and so a pandas table that was read from
    Parquet, prints lists without."""
    made, begun, quote = [], 0, ""
    at = 0
    while at < len(text):
        letter = text[at]
        if quote:
            if letter == "\\":
                at += 1
            elif letter == quote:
                quote = ""
        elif letter in "'\"":
            quote = letter
        elif letter == "}":
            after = at + 1
            while after < len(text) and text[after].isspace():
                after += 1
            if text[after : after + 1] == "{":
                made.append(text[begun : at + 1] + ",")
                begun = at + 1
        at += 1
    return "".join([*made, text[begun:]])


def kind_in_words(value: Any) -> str:
    """The type of a value in words: `a list`, `a number`."""
    kinds = {
        list: "a list", tuple: "a list", dict: "an object", bool: "a boolean", str: "a string",
        type(None): "null", int: "a number", float: "a number", bytes: "bytes",
    }  # fmt: skip
    return kinds.get(type(value), f"of the type {type(value).__name__}")
