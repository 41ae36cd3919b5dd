"""What is written on the command line: `--set KEY=VALUE`, `--param K=V`, `--params-file F`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from fmstune.config.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file. Raises `ConfigError` that names the file, and the line where it can."""
    text = read_text(path)
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deeply.") from None


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises `ConfigError`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}.{_near(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; give a file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None


def _near(path: Path) -> str:
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except (OSError, ValueError):
        return f" There is no directory {path.parent} either." if path.parent != Path() else ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f" Did you mean {path.parent / close[0]}?" if close else ""


def parse_sets(assignments: Sequence[str]) -> list[tuple[str, Any]]:
    """`--set` as (dotted key, value): the value as TOML has it, or else a text."""
    found = []
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {assignment!r} is not of the form KEY=VALUE.")
        found.append((key.strip(), _toml_value(text.strip())))
    return found


def _toml_value(text: str) -> Any:
    try:
        parsed = tomli.loads(f"value = {text}")
    except (tomli.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def split_key(key: str, where: str) -> list[str]:
    """The parts of a dotted key; a part with dots in it is quoted: `trackers."a.b:C".url`."""
    parts = re.findall(r'"([^"]*)"|([^."]+)', key)
    names = [quoted or bare.strip() for quoted, bare in parts]
    written = ".".join(f'"{quoted}"' if quoted else bare for quoted, bare in parts)
    if written != key or not all(names):
        raise ConfigError(f"{where}: {key!r} is not a key; keys read like training.learning_rate.")
    return names


def parse_params(assignments: Sequence[str]) -> dict[str, Any]:
    """`--param` as a nested mapping: JSON scalars are typed, anything else is a text; later wins."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        names = key.split(".")
        if not separator or not all(name.strip() for name in names):
            raise ConfigError(f"--param {assignment!r} is not of the form NAME=VALUE.")
        table = found
        for name in names[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--param {assignment!r}: {name} is a value already, not a table.")
        if isinstance(table.get(names[-1]), dict):
            raise ConfigError(f"--param {assignment!r}: {names[-1]} is a table already, not a value.")
        table[names[-1]] = _json_scalar(text)
    return found


def _json_scalar(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=lambda word: word)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, (dict, list)) or (isinstance(value, float) and not math.isfinite(value)):
        return text
    return value


def read_params_file(path: Path) -> dict[str, Any]:
    """The parameters in a JSON or TOML file. Raises `ConfigError`."""
    if path.suffix == ".toml":
        return read_toml(path)
    if path.suffix != ".json":
        raise ConfigError(f"--params-file {path}: give a .json or a .toml file.")
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: at the top there is no object with the names of the parameters.")
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on it, table by table."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result
