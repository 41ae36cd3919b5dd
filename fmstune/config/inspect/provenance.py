"""Where each setting of a run comes from, as comments in its `config.toml`, and read from there again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_TABLE = re.compile(r"\[([^\[\]]+)\]\s*")
_KEY = re.compile(r'([\w-]+|"[^"]*") = ')
_MARK = "  # from "


def with_origins(toml: str, origins: Mapping[str, str]) -> str:
    """The TOML with a comment at each setting that is no default: `seed = 1  # from --seed`."""
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
    """Where the settings of a `config.toml` come from, by dotted key, as far as its comments say that."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # nothing is known then
        return {}
    found, table = {}, ""
    for line in text.splitlines():
        if head := _TABLE.fullmatch(line):
            table = head[1]
        elif (key := _KEY.match(line)) and _MARK in line:
            found[f"{table}.{key[1]}"] = line.rpartition(_MARK)[2]
    return found


def _opened(line: str) -> int:
    """How many arrays a line opens more than it ends, as `tomli_w` breaks them: an item a line."""
    end = line.rstrip()
    return end.endswith(("[", "{")) - end.strip().startswith(("]", "}"))
