"""Row templates: text with columns in braces, such as `### Q: {question}\\n### A: {answer}`."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A template: pairs of (the text before a column, the column), and the text after the last one.

    The value of the last column and the text after it are learnt; everything before is the prompt.
    """

    parts: tuple[tuple[str, str], ...]
    end: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in the template, without repetitions."""
        return tuple(dict.fromkeys(column for _, column in self.parts))

    def fill(self, values: Mapping[str, str]) -> tuple[str, str]:
        """The prompt and the response of a row, whose columns are all strings."""
        *before, (opening, last) = self.parts
        prompt = "".join(text + values[column] for text, column in before) + opening
        return prompt, values[last] + self.end


def parse_template(text: str) -> PromptTemplate:
    """Parse a template. `\\n` and `\\t`, which a shell does not convert, are newlines and tabs; `{{` is a
    brace.

    Raises `ValueError` with what is wrong.
    """
    parts: list[tuple[str, str]] = []
    end = ""
    try:
        found = list(string.Formatter().parse(text.replace("\\n", "\n").replace("\\t", "\t")))
    except ValueError as error:
        raise ValueError(f"{error}; write columns in braces, and double the braces of the text") from None
    for literal, name, options, conversion in found:
        if name is None:
            end += literal
            continue
        if not name.strip() or options or conversion:
            shown = (
                f"{{{name}{'!' * bool(conversion)}{conversion or ''}{':' * bool(options)}{options or ''}}}"
            )
            raise ValueError(f"{shown} is not a column; write columns as {{question}}")
        parts.append((end + literal, name))
        end = ""
    if not parts:
        raise ValueError("it has no columns; write them in braces, as in Q: {question} A: {answer}")
    return PromptTemplate(tuple(parts), end)
