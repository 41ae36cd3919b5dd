"""Redaction: keep secrets out of the journal, files, logs, terminals and trackers.

It combines three methods, since each alone misses some: secret names (`fmstune.secrets.names`), forms of
secrets (`fmstune.secrets.forms`), and secrets known to this process, even if escaped
(`fmstune.secrets.known`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fmstune.secrets.forms import (
    REDACTED,
    hide_forms,
    hide_users,
    holds_redacted,
    is_placeholder,
    is_secret_flag,
    looks_random,
)
from fmstune.secrets.known import Known, config_secrets, in_environment, in_files, secret_texts
from fmstune.secrets.names import is_count, is_secret_name, names_credential

__all__ = [
    "REDACTED",
    "Redactor",
    "beginning",
    "config_secrets",
    "hide",
    "holds_redacted",
    "know_secrets",
    "longest_secret",
    "process_redactor",
    "process_secrets",
    "secret_texts",
]


class Redactor:
    """Replaces secrets with `[redacted]` in strings, and in mappings by name and by value."""

    def __init__(self, environment: Mapping[str, str] | None = None, secrets: Iterable[str] = ()) -> None:
        """By default, uses all secrets known to this process: in its environment, SDKs' credential files, and
        its configuration. `environment` replaces these; `secrets` are further strings to hide."""
        own = environment is None
        given = dict(os.environ) if environment is None else environment
        known = [
            *in_environment(given),
            *secrets,
            *((*in_files(given), *_of_process.configured) if own else ()),
        ]
        self._found = Known.of(known)

    @property
    def known(self) -> Known:
        """The known secrets; a new object whenever they change."""
        return self._found

    def text(self, text: str, *, tracked: bool = False) -> str:
        """Hide the secrets in a string. Idempotent."""
        return hide_forms(self.known.hide(text), tracked=tracked)

    def value(self, value: Any, name: str = "", *, tracked: bool = False) -> Any:
        """Hide the secrets in a value, including nested ones. With a secret name, only booleans and empty
        values stay; otherwise numbers are not secrets. In `tracked` values, a `token` is a model's, unless it
        looks like a credential."""
        return self._value(value, name, names_credential(name) if tracked else is_secret_name(name), tracked)

    def _value(self, value: Any, name: str, secret: bool, tracked: bool) -> Any:
        if isinstance(value, Mapping):
            below = {
                key: self.value(item, name if secret else str(key), tracked=tracked)
                for key, item in value.items()
            }
            if (entry := _entry(value)) is not None and self._says_so(entry[0]):
                below[entry[1]] = self._value(value[entry[1]], entry[0], True, tracked)
            return self._renamed(below)
        if isinstance(value, (list, tuple)):
            return self._list(value, name, secret, tracked)
        if secret:
            return _hidden(value, name, tracked)
        if not isinstance(value, str):
            return value
        if tracked and value in self.known.alone:
            return REDACTED
        if "token" in name.lower() and len(value) >= 16 and looks_random(value):
            return REDACTED
        return self.text(value, tracked=tracked)

    def _list(self, values: Sequence[Any], name: str, secret: bool, tracked: bool) -> list[Any]:
        """Hide the secrets in a list; in a list of a command's arguments, those after flags like
        `--api-key`."""
        hidden, flagged, named = [], False, False
        name_of_it = ""
        if len(values) == 2 and isinstance(values[0], str) and not secret and self._says_so(values[0]):
            return [self.text(values[0]), self._value(values[1], values[0], True, tracked)]
        for item in values:
            one = self._value(item, name, secret, tracked)
            if flagged and isinstance(item, str) and not item.startswith("-"):
                one = _hidden(item, "", tracked)
            if named and not secret:  # ["api_key", "=", …]
                one = self._value(item, name_of_it, True, tracked)
            hidden.append(one)
            flagged = is_secret_flag(item)
            named = isinstance(item, str) and item.strip() in _ASSIGNS and name_of_it != ""
            if not named:
                name_of_it = item if isinstance(item, str) and self._says_so(item) else ""
        return hidden

    def _says_so(self, name: str) -> bool:
        """Whether the first of a pair is the name of a credential: a single word, like a header or variable.

        It must be unambiguous: a list of two may also consist of names, `["embed_tokens", "lm_head"]`.
        """
        return names_credential(name) and _NAME_OF_PAIR.fullmatch(name) is not None

    def mapping(self, values: Mapping[str, Any], name: str = "", *, tracked: bool = False) -> dict[str, Any]:
        """Hide the secrets in a mapping; `name` is the mapping's own, such as a namespace of params."""
        return dict(self.value(values, name, tracked=tracked))

    def configuration(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        """Hide the secrets in the tables of a configuration. Its keys belong to the program, and are kept."""
        return {
            table: {key: self.setting(f"{table}.{key}", value) for key, value in values.items()}
            if isinstance(values, Mapping)
            else self.value(values, table)
            for table, values in tables.items()
        }

    def setting(self, key: str, value: Any) -> Any:
        """Hide the secrets in the value of a setting, such as `training.hub_token`. Paths and names are read
        back later, so only passwords in URLs are removed from them."""
        table, _, name = key.partition(".")
        if table == "params":
            return self.value(value, name, tracked=True)
        if table in _TABLES_OF_PATHS or name.endswith(_ENDS_OF_PATHS):
            return _without_users(value)
        if isinstance(value, Mapping):
            return {inner: self.value(item, str(inner)) for inner, item in value.items()}
        return self.value(value, name)

    def metrics(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Hide the secrets in the names and string values of metrics. Numbers are measurements, whatever
        their names."""
        return self._renamed({key: self.metric(item, key) for key, item in values.items()})

    def metric(self, value: Any, name: str) -> Any:
        """Hide the secrets in the value of a metric."""
        return value if _is_number(value) else self.value(value, name, tracked=True)

    def _renamed(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Hide the secrets in the keys of a mapping; keys that become equal are numbered."""
        renamed: dict[Any, Any] = {}
        counts: dict[Any, int] = {}
        for key, value in values.items():
            new = stem = self.text(key) if isinstance(key, str) else key
            while new in renamed:
                counts[stem] = counts.get(stem, 1) + 1
                new = f"{stem} {counts[stem]}"
            renamed[new] = value
        return renamed


_LONGEST_SECRET = 1 << 14
"""The maximum length of a secret recognised by its form, such as a JSON web token or a private key."""
_ASSIGNS = frozenset({"=", ":", "==", ":=", "=>"})
_NAMES_OF_ENTRY = ("name", "key", "header", "variable", "parameterkey", "parametername", "k")
_VALUES_OF_ENTRY = ("value", "parametervalue", "v")
_NAME_OF_PAIR = re.compile(r"[\w.-]{2,100}")
_TABLES_OF_PATHS = frozenset({"model", "data"})
_ENDS_OF_PATHS = ("dir", "path", "file", "checkpoint", "model_id", "run_name", "deepspeed", "log")


def _without_users(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_users(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_users(item) for item in value]
    if not isinstance(value, str):
        return value
    return hide_forms(value) if "://" in value else hide_users(value)  # `?token=…` occurs only in URLs


class _ProcessRedactor(Redactor):
    """Always knows the current secrets of this process: a user's module may load a file of variables when it
    is imported, long after the start of the run. A secret stays one until the next `know_secrets`: a program
    may remove its key from the environment after reading it."""

    def __init__(self) -> None:
        self.know(())

    def know(self, secrets: Iterable[str]) -> None:
        """Set the secrets of the configuration, and forget the previous ones."""
        self.configured = tuple(secrets)
        self._environment: dict[Any, Any] | None = None
        self._seen = dict.fromkeys(self.configured)

    @property
    def known(self) -> Known:
        # This comparison costs 2 µs per event; `os.environ` itself would decode all strings, in 50 µs.
        environment = getattr(os.environ, "_data", os.environ)
        if self._environment != environment:
            self._look(dict(environment))
        return self._found

    @property
    def secrets(self) -> tuple[str, ...]:
        """All secrets: those of the configuration, the environment, and SDKs' credential files."""
        _ = self.known
        return tuple(self._seen)

    def _look(self, environment: dict[Any, Any]) -> None:
        given = dict(os.environ)
        seen = self._seen | dict.fromkeys([*in_environment(given), *in_files(given)])
        if self._environment is None or seen != self._seen:
            self._found = Known.of(seen)
        self._environment, self._seen = environment, seen


_of_process = _ProcessRedactor()


def know_secrets(secrets: Iterable[str]) -> None:
    """Set the secrets of the configuration for `hide`, instead of those of an earlier one."""
    _of_process.know(secrets)


def process_secrets() -> tuple[str, ...]:
    """All secrets known to this process."""
    return _of_process.secrets


def hide(text: str) -> str:
    """Hide all secrets known to this process. All text for users or files (messages, errors, ledgers, logs)
    must pass through it."""
    return process_redactor().text(text)


def longest_secret() -> int:
    """The maximum length of a secret in all its forms, in characters."""
    return max(_LONGEST_SECRET, _of_process.known.longest)


def beginning(text: str, most: int) -> str:
    """Truncate a text to at most `most` characters, without cutting through a secret: later redaction would
    not recognise half of one."""
    if len(text) <= most or most <= 0:
        return text[: max(0, most)]
    margin = longest_secret()
    start = max(0, most - margin)
    # If a secret is cut, hiding the first part gives a different result with and without the rest.
    cut, whole = hide(text[start:most]), hide(text[start : most + margin])
    same = next((at for at, pair in enumerate(zip(cut, whole, strict=False)) if pair[0] != pair[1]), len(cut))
    return text[:start] + cut[:same]


def process_redactor() -> Redactor:
    """The redactor with all secrets known to this process, including later ones."""
    return _of_process


def _entry(value: Mapping[Any, Any]) -> tuple[str, str] | None:
    """The name in a mapping of the form `{"Key": …, "Value": …}`, and the key of its value."""
    if len(value) > 10:
        return None
    keys = {key.lower(): key for key in value if isinstance(key, str)}
    names = [value[keys[key]] for key in _NAMES_OF_ENTRY if isinstance(value.get(keys.get(key)), str)]
    values = [keys[key] for key in _VALUES_OF_ENTRY if key in keys]
    return (names[0], values[0]) if names and values else None


def _hidden(value: Any, name: str, tracked: bool) -> Any:
    if value is None or value == "" or isinstance(value, bool):
        return value
    if isinstance(value, str) and is_placeholder(value):  # tool_token = "<tool>"
        return value
    # The result of a test, in a table.
    if tracked and name == "pass" and (_is_number(value) or str(value).lower() in ("yes", "no", "y", "n")):
        return value
    return value if _is_number(value) and is_count(name) else REDACTED


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
