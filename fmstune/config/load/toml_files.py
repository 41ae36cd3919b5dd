"""Read configuration files, with error messages that name the file and the line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomli

from fmstune.access import reason
from fmstune.config.check.suggest import similar_file
from fmstune.errors import ConfigError
from fmstune.secrets.names import is_secret_name
from fmstune.text import shortened, shown_path


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises `ConfigError`."""
    name = shown_path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(f"{name} is a link to {path.readlink()}, which does not exist.") from None
        meant = f" Settings are given as --set {name}." if "=" in path.name else similar_file(path)
        raise ConfigError(f"there is no file {name}.{meant}") from None
    except IsADirectoryError:
        raise ConfigError(f"{name} is a directory; use a file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {reason(error, path)}.") from None
    except ValueError as error:
        raise ConfigError(f"{name} cannot be read: {error}.") from None


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The contents of a TOML file called `name`. Raises `ConfigError` with the line and what is wrong."""
    try:
        return tomli.loads(text)
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply.") from None
    except tomli.TOMLDecodeError as error:
        message = str(error).rstrip(".")
        at = re.search(r" \(at line (\d+), column \d+\)$", message)
        if at is None:
            raise ConfigError(f"{name}: invalid TOML: {message}.{_other_format(name)}") from None
        number, what = int(at[1]), message[: at.start()]
        line = _lines(text)[number - 1]
        instead = _other_format(name, line, value=what == "Invalid value")
        raise ConfigError(f"{name}:{number}: invalid TOML: {what}.{instead}") from None
    except ValueError:  # Python's limit, not TOML's: a number with thousands of digits
        raise ConfigError(f"{name}: a number in it is too large.") from None


def _lines(text: str) -> list[str]:
    """The lines as TOML counts them: `str.splitlines` splits at more characters."""
    return text.split("\n")


def _other_format(name: str, line: str = "", *, value: bool = False) -> str:
    """The remedy for a file that is not TOML; `value` if it is the line's value that is invalid."""
    if name.lower().endswith((".yaml", ".yml", ".json")):
        data = " Pass data with --data." if name.lower().endswith(".json") else ""
        return f" Write the configuration as TOML: tables in [brackets], and lines of key = value.{data}"
    if name.lower().endswith((".jsonl", ".csv", ".tsv", ".txt")):  # the shell has expanded a glob
        return " Pass data with --data, and a glob in quotes: --data '*.jsonl'."
    if re.match(r"\s*[\w.-]+\s*:", line):
        return " Write key = value."
    written = re.match(r"\s*([\w.-]+)\s*=\s*([^\"'\[{\s][^#]*)", line)
    if not value or not written:
        return ""
    text = written[2].strip()
    if is_secret_name(written[1]) or '"' in text or shortened(text) != text:
        return " Put a string in quotes."
    return f" Did you mean {text.lower()}?" if text in ("True", "False") else f' Did you mean "{text}"?'


_NAME = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_KEY = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_LINE = re.compile(rf"\s*(?:\[+\s*({_KEY})\s*\]|({_KEY})\s*=)")


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line number of each key in a TOML text, by the parts of the key.

    A scan rather than a parser: it does not find keys within inline tables.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    open_quote = ""
    for number, line in enumerate(_lines(text), start=1):
        if open_quote:  # a multi-line string has no keys
            open_quote = "" if open_quote in line else open_quote
            continue
        match = _LINE.match(line)
        if match:
            parts = tuple(part.strip("\"'") for part in re.findall(_NAME, match[1] or match[2]))
            if match[1]:
                table = parts
            found.setdefault(parts if match[1] else table + parts, number)
        open_quote = _opened(line)
    return found


_QUOTED = re.compile(r"""#|"{3}|'{3}|"(?:\\.|[^"\\])*"|'[^']*'""")


def _opened(line: str) -> str:
    """The quotes of a multi-line string that starts in this line and does not end in it."""
    match = _QUOTED.search(line)
    while match is not None and match[0] != "#":  # ignore quotes in a comment
        end = match.end()
        if match[0] in ('"""', "'''"):
            end = line.find(match[0], end) + 3
            if end < 3:
                return match[0]
        match = _QUOTED.search(line, end)
    return ""
