"""Compare two configurations by dotted key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.config.load.toml_files import parse_toml, read_text
from fmstune.config.load.values import dotted
from fmstune.config.paths.runs import no_such_run
from fmstune.errors import ConfigError
from fmstune.text import shown_path


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose values differ; `None` if it is not set."""

    key: str
    first: Any
    second: Any


def config_file(path: Path, file_name: str) -> Path:
    """The path itself, or for a directory the file `file_name` in it. Raises `ConfigError` if that is
    missing."""
    if not path.exists() and not path.suffix:
        raise ConfigError(no_such_run(path))
    if not path.is_dir():
        return path
    if not (path / file_name).exists():
        raise ConfigError(f"{shown_path(path)} is not a run: it has no {file_name}.")
    return path / file_name


def read_tables(path: Path, file_name: str) -> dict[str, Any]:
    """The tables of a TOML file, or of the file called `file_name` in a directory. Raises `ConfigError`."""
    file = config_file(path, file_name)
    return parse_toml(read_text(file), shown_path(file))


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The differences between nested tables, sorted by key."""
    ours, theirs = flat(first), flat(second)
    return [
        Difference(key, ours.get(key), theirs.get(key))
        for key in sorted(ours.keys() | theirs.keys())
        if key not in ours or key not in theirs or ours[key] != theirs[key]
    ]


def flat(tables: Mapping[str, Any], above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Flatten nested tables, by dotted key."""
    found: dict[str, Any] = {}
    for name, value in tables.items():
        key = (*above, str(name))
        if isinstance(value, Mapping) and value:
            found |= flat(value, key)
        else:
            found[dotted(key)] = value
    return found
