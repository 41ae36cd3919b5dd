"""Recognise names that may be on the hub."""

from __future__ import annotations

import re
from pathlib import Path

# huggingface_hub/utils/_validators.py (2.4), which also excludes the three below
_NAME = re.compile(r"(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)


def may_be_on_the_hub(name: str, *, one_word: bool = False) -> bool:
    """Whether the name of a model or of data may be on the hub; some old models (`one_word`) have no
    owner."""
    if name == "demo" or not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        return False
    return ("/" in name or one_word) and not Path(name).exists()
