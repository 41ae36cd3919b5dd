"""Names that may be those of the hub."""

from __future__ import annotations

from pathlib import Path


def may_be_on_the_hub(name: str, *, one_word: bool = False) -> bool:
    """Whether a name of a model or of data is one of the hub; some old models have no owner in theirs."""
    if not name or name == "demo" or name.startswith(("/", ".", "~")) or name.endswith("/"):
        return False
    if Path(name).exists():
        return False
    return name.count("/") == 1 or (one_word and "/" not in name)
