"""Pairs of answers in OpenAI's preference format."""

from __future__ import annotations

from collections.abc import Mapping

from fmstune.data.columns import Row

_PAIR = {"input", "preferred_output", "non_preferred_output"}


def as_pair(row: Row) -> Row:
    """A row of {input: {messages, tools}, preferred_output, non_preferred_output} as {prompt, tools, chosen,
    rejected}; other fields of its input become columns. Any other row unchanged."""
    given = row.get("input")
    if not row.keys() >= _PAIR or not isinstance(given, Mapping) or "messages" not in given:
        return row
    others = {name: value for name, value in row.items() if name not in _PAIR}
    inside = {
        name if name == "tools" else f"input.{name}": value
        for name, value in given.items()
        if name != "messages"
    }
    return {
        **others,
        **inside,
        "prompt": given["messages"],
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    }
