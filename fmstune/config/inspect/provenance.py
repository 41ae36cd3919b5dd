"""Write the origin of each setting as comments in a run's `config.toml`, and read them back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_TABLE = re.compile(r"\[([^\[\]]+)\]\s*")
_KEY = re.compile(r'([\w-]+|"[^"]*") = ')
_MARK = "  # from "


def with_origins(toml: str, origins: Mapping[str, str]) -> str:
    """Add a comment to each setting that is not a default: `seed = 1  # from --seed`."""
    lines, table = [], ""
    depth = 0
    for line in toml.splitlines():
        inside, depth = depth, max(0, depth + _opened(line))
        found = None if inside else _TABLE.fullmatch(line)
        key = None if inside else _KEY.match(line)
        table = found[1] if found else table
        origin = origins.get(f"{table}.{key[1]}", "default") if key else "default"
        lines.append(line if origin == "default" else f"{line}{_MARK}{' '.join(origin.split())}")
    return "\n".join(lines) + "\n"


def written_origins(path: Path) -> dict[str, str]:
    """The origins of the settings of a `config.toml`, by dotted key, from its comments."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # no origins are known
        return {}
    found, table = {}, ""
    for line in text.splitlines():
        if head := _TABLE.fullmatch(line):
            table = head[1]
        elif (key := _KEY.match(line)) and _MARK in line:
            found[f"{table}.{key[1]}"] = line.rpartition(_MARK)[2]
    return found


def _opened(line: str) -> int:
    """How many more arrays a line opens than it closes, in `tomli_w`'s layout: one item per line."""
    end = line.rstrip()
    return end.endswith(("[", "{")) - end.strip().startswith(("]", "}"))
