"""Parse values on the command line: `--set KEY=VALUE`, `--param K=V`, `--params-file F`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from fmstune.config.load.toml_files import parse_toml, read_text
from fmstune.errors import ConfigError
from fmstune.text import shortened, shown, shown_path

_PART = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([^\s."'=]+))\s*(\.|$)""")
_DEEPEST = 32
_LARGEST = 2**63
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def parse_sets(assignments: Sequence[str]) -> list[tuple[list[str], Any]]:
    """Parse `--set` into (parts of the key, value): a TOML value, or else a string."""
    found = []
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"--set {shown(assignment)} is not of the form KEY=VALUE, "
                "such as training.learning_rate=2e-5."
            )
        check_storable(assignment, "--set")
        found.append((split_key(key, "--set"), toml_value(text.strip())))
    return found


def toml_value(text: str) -> Any:
    """Parse a TOML value; anything else is the string itself."""
    try:
        parsed = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def split_key(key: str, where: str) -> list[str]:
    """Split a dotted key; a part that contains dots is quoted: `trackers."a.b:C".url`."""
    parts, position = [], 0
    while True:
        match = _PART.match(key, position)
        if match is None:
            raise ConfigError(f"{where}: {shown(key)} is not a key; use one such as training.learning_rate.")
        parts.append(match[1] or match[2] or match[3])
        position = match.end()
        if len(parts) > _DEEPEST:
            raise ConfigError(f"{where}: {shown(key)} is nested too deeply; the limit is {_DEEPEST} levels.")
        if not match[4]:
            return parts


def dotted(parts: Sequence[str]) -> str:
    """Join the parts of a key, in the form that `split_key` reads."""
    return ".".join(part if _BARE.fullmatch(part) else _quoted(part) for part in parts)


def _quoted(part: str) -> str:
    return f"'{part}'" if '"' in part else f'"{part}"'


def parse_params(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse `--param` into a nested mapping: JSON scalars are typed, anything else is a string; later
    wins."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        names = [name.strip() for name in key.split(".")]
        if not separator or not all(names):
            raise ConfigError(f"--param {shown(assignment)} is not of the form NAME=VALUE, such as team=nlp.")
        check_storable(assignment, "--param")
        if len(names) > _DEEPEST:
            raise ConfigError(
                f"--param {shown(assignment)} is nested too deeply; the limit is {_DEEPEST} levels."
            )
        table = found
        for name in names[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    f"--param {shown(assignment)}: {shortened(name)} is already a value, not a table."
                )
        if isinstance(table.get(names[-1]), dict):
            raise ConfigError(
                f"--param {shown(assignment)}: {shortened(names[-1])} is already a table, not a value."
            )
        table[names[-1]] = _json_scalar(text)
    return found


def _json_scalar(text: str) -> Any:
    try:
        # JSON has no NaN or Infinity, but Python reads them by default.
        value = json.loads(text, parse_constant=lambda word: word)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, (dict, list)) or (isinstance(value, float) and not math.isfinite(value)):
        return text
    try:
        check_storable(value, "--param")
    except ConfigError:  # "\\ud800" and 10**30 are JSON, but cannot be stored
        return text
    return value


def read_params_file(path: Path) -> dict[str, Any]:
    """The parameters in a JSON or TOML file. Raises `ConfigError`."""
    name, suffix = shown_path(path), path.suffix.lower()
    if suffix not in (".json", ".toml"):
        raise ConfigError(f"--params-file {name}: use a .json or .toml file.")
    text = read_text(path)
    found = parse_toml(text, name) if suffix == ".toml" else _parse_json(text, name)
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: it must contain one object, with the names of the parameters: {{...}}.")
    check_storable(found, name)
    return found


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}: invalid JSON: {error.msg}.") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply.") from None
    except ValueError:  # Python's limit, not JSON's: a number with thousands of digits
        raise ConfigError(f"{name}: a number in it is too large.") from None


def check_storable(value: Any, where: str, depth: int = 0) -> None:
    """Raise `ConfigError` for a value that `config.toml` cannot hold: a string that is not UTF-8, which a
    command line may contain, or tables nested too deeply to be read back."""
    if depth > _DEEPEST:
        raise ConfigError(f"{where}: nested too deeply; the limit is {_DEEPEST} levels.")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigError(f"{where}: {shown(value)} is not UTF-8 text.") from None
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ConfigError(f"{where}: an integer has more than 64 bits; put it in quotes.")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_storable(key, where, depth + 1)
            check_storable(item, where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_storable(item, where, depth + 1)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`, table by table."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result
