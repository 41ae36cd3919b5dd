"""What is written on the command line: `--set KEY=VALUE`, `--param K=V`, `--params-file F`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from fmstune.config.errors import ConfigError, shortened, shown

_DEEPEST = 32
_LARGEST = 2**63


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file. Raises `ConfigError` that names the file, and the line where it can."""
    text, name = read_text(path), shortened(str(path))
    try:
        found = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {_cause(error)}.") from None
    except RecursionError:
        raise ConfigError(f"{name}: it is nested too deeply.") from None
    except ValueError:  # of Python, not of TOML: a number of thousands of digits
        raise ConfigError(f"{name}: a number in it is too large.") from None
    check_storable(found, name)
    return found


def check_storable(value: Any, where: str) -> None:
    """Raises `ConfigError` for what could be read, but not be written to the run's config.toml."""
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple)):
                below += item
            elif isinstance(item, int) and not -_LARGEST <= item < _LARGEST:
                raise ConfigError(f"{where}: a whole number has more than 64 bits; put it in quotes.")
            elif isinstance(item, str) and not _is_text(item):
                raise ConfigError(f"{where}: {shown(item)} is not UTF-8 text.")
        if not below:
            return
        level = below
    raise ConfigError(f"{where}: it is nested too deeply; {_DEEPEST} levels are the most.")


def _is_text(text: str) -> bool:
    """Whether it can be encoded: bytes of a command line that are no UTF-8 arrive as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cause(error: Exception) -> str:
    return str(error).rstrip(".")


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises `ConfigError`."""
    name = shortened(str(path))
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {name}.{_near(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{name} is a directory; give a file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


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
            raise ConfigError(f"--set {shown(assignment)} is not of the form KEY=VALUE.")
        check_storable(assignment, "--set")
        value = _toml_value(text.strip())
        check_storable(value, "--set")
        found.append((key.strip(), value))
    return found


def _toml_value(text: str) -> Any:
    try:
        parsed = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):  # `TOMLDecodeError` is a ValueError
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def split_key(key: str, where: str) -> list[str]:
    """The parts of a dotted key; a part with dots in it is quoted, as TOML has it:
    `trackers."a.b:C".url` or `trackers.'a.b:C'.url`."""
    parts: list[str] = re.findall(r'"[^"]*"|\'[^\']*\'|[^."\']+', key)
    names = [part.strip("\"'") if part[0] in "\"'" else part.strip() for part in parts]
    if not parts or ".".join(parts) != key or not all(names):
        raise ConfigError(f"{where}: {shown(key)} is not a key; keys read like training.learning_rate.")
    if len(names) > _DEEPEST:
        raise ConfigError(f"{where}: {shown(key)} is nested too deeply; {_DEEPEST} levels are the most.")
    return names


def parse_params(assignments: Sequence[str]) -> dict[str, Any]:
    """`--param` as a nested mapping: JSON scalars are typed, anything else is a text; later wins."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        check_storable(assignment, "--param")
        key, separator, text = assignment.partition("=")
        names = [name.strip() for name in key.split(".")]
        if not separator or not all(names):
            raise ConfigError(f"--param {shown(assignment)} is not of the form NAME=VALUE.")
        if len(names) > _DEEPEST:
            raise ConfigError(f"--param {shown(assignment)} is nested too deeply.")
        table = found
        for name in names[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    f"--param {shown(assignment)}: {shortened(name)} is a value already, not a table."
                )
        last = names[-1]
        if isinstance(table.get(last), dict):
            raise ConfigError(
                f"--param {shown(assignment)}: {shortened(last)} is a table already, not a value."
            )
        table[last] = _json_scalar(text)
    return found


def _json_scalar(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=lambda word: word)
    except (ValueError, RecursionError):
        return text
    plain = value is None or isinstance(value, (bool, str))
    number = (
        math.isfinite(value) if isinstance(value, float) else isinstance(value, int) and abs(value) < _LARGEST
    )
    # "\\ud800" is JSON, but no text that could be stored.
    return value if number or (plain and _is_text(str(value))) else text


def read_params_file(path: Path) -> dict[str, Any]:
    """The parameters in a JSON or TOML file. Raises `ConfigError`."""
    name, suffix = shortened(str(path)), path.suffix.lower()
    if suffix == ".toml":
        return read_toml(path)
    if suffix != ".json":
        raise ConfigError(f"--params-file {name}: give a .json or a .toml file.")
    text = read_text(path)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}: {_cause(error)}.") from None
    except RecursionError:
        raise ConfigError(f"{name}: it is nested too deeply.") from None
    except ValueError:
        raise ConfigError(f"{name}: a number in it is too large.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: at the top there is no object with the names of the parameters.")
    check_storable(found, name)
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on it, table by table."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result
