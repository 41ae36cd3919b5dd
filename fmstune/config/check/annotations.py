"""Type annotations as strings, since those of `SFTConfig` are read from source rather than imported."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any


def annotation_of(field: dataclasses.Field[Any]) -> str:
    """The annotation as a string, whether or not the class's module postpones annotations."""
    annotation: Any = field.type
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def options_of(annotation: str) -> list[str]:
    """The alternatives of an annotation: `int` and `None` for `Optional[int]` and `int | None`."""
    text = annotation.replace("typing.", "").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return options_of(text[1:-1])
    if text.startswith("Optional[") and text.endswith("]"):
        return [*options_of(text[9:-1]), "None"]
    if text.startswith("Union[") and text.endswith("]"):
        return [option for part in split(text[6:-1], ",") for option in options_of(part)]
    parts = split(text, "|")
    return parts if len(parts) == 1 else [option for part in parts for option in options_of(part)]


def literal_values(option: str) -> tuple[Any, ...]:
    """The values of `Literal[...]`."""
    values: tuple[Any, ...] = ast.literal_eval(f"({option.partition('[')[2][:-1]},)")
    return values


def split(text: str, separator: str) -> list[str]:
    """Split at separators outside of brackets."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "[(") - (char in "])")
        if char == separator and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]
