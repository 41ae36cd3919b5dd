"""Recognise names that may be on the hub."""

from __future__ import annotations

from pathlib import Path


def may_be_on_the_hub(name: str, *, one_word: bool = False) -> bool:
    """Whether the name of a model or of data may be on the hub; some old models (`one_word`) have no
    owner."""
    if not name or name == "demo" or name.startswith(("/", ".", "~")) or name.endswith("/"):
        return False
    if Path(name).exists():
        return False
    return name.count("/") == 1 or (one_word and "/" not in name)
