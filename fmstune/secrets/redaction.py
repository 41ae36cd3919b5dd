"""Redaction: no secret reaches the journal, a file, a log, a terminal or a tracker.

Three nets, since each alone has holes: values under secret names, texts whose form says what they are (both
in `fmstune.secrets.names`), and the very texts that are known to be secrets here, however they are escaped.
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
    """Replaces secrets by `[redacted]` in texts, and in mappings by name and by value."""

    def __init__(self, environment: Mapping[str, str] | None = None, secrets: Iterable[str] = ()) -> None:
        """`environment` defaults to all that this process knows: its environment, the files that SDKs keep
        credentials in, its configuration. `secrets` are further texts to hide."""
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
        """The texts that it knows to be secrets; another object when it has come to know others."""
        return self._found

    def text(self, text: str, *, tracked: bool = False) -> str:
        """The text without the secrets in it. Doing it twice changes nothing more."""
        return hide_forms(self.known.hide(text), tracked=tracked)

    def value(self, value: Any, name: str = "", *, tracked: bool = False) -> Any:
        """The value without secrets, nested ones included. Under a secret name nothing stays but truth
        values and nothing itself; elsewhere numbers are no secrets. What is `tracked` are the user's own
        words: a `token` is a model's there, unless it looks like a credential."""
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
        """A list without secrets; in one of a command's arguments, `--api-key` says what the next one is."""
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
        """Whether the first of a pair is a name that says so: one word, as a header or a variable has.

        It has to be a sure one: a list of two may be names as well, `["embed_tokens", "lm_head"]`.
        """
        return names_credential(name) and _NAME_OF_PAIR.fullmatch(name) is not None

    def mapping(self, values: Mapping[str, Any], name: str = "", *, tracked: bool = False) -> dict[str, Any]:
        """The mapping without secrets; with the name that it has, such as a namespace of params."""
        return dict(self.value(values, name, tracked=tracked))

    def configuration(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        """The tables of a configuration without secrets. Its keys are the program's, and keep their names."""
        return {
            table: {key: self.setting(f"{table}.{key}", value) for key, value in values.items()}
            if isinstance(values, Mapping)
            else self.value(values, table)
            for table, values in tables.items()
        }

    def setting(self, key: str, value: Any) -> Any:
        """The value of a setting, such as `training.hub_token`, without secrets. The paths and names in it
        are read back: they lose the password of a URL, and nothing else."""
        table, _, name = key.partition(".")
        if table == "params":
            return self.value(value, name, tracked=True)
        if table in _TABLES_OF_PATHS or name.endswith(_ENDS_OF_PATHS):
            return _without_users(value)
        if isinstance(value, Mapping):
            return {inner: self.value(item, str(inner)) for inner, item in value.items()}
        return self.value(value, name)

    def metrics(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics without secrets in their names and texts. A number is a measurement, whatever its name."""
        return self._renamed({key: self.metric(item, key) for key, item in values.items()})

    def metric(self, value: Any, name: str) -> Any:
        """The value of a metric without secrets."""
        return value if _is_number(value) else self.value(value, name, tracked=True)

    def _renamed(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """The mapping without secrets in its keys; two that become the same stay two."""
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
"""Characters of a secret that is known by its form alone, such as a JSON web token or a private key."""
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
    return hide_forms(value) if "://" in value else hide_users(value)  # `?token=…` is of a URL alone


class _ProcessRedactor(Redactor):
    """Knows what this process does, at each moment: a module of the user's may load a file of variables when
    it is imported, long after the run has begun. What was a secret stays one until the next `know_secrets`:
    a program may take its key out of the environment when it has read it."""

    def __init__(self) -> None:
        self.know(())

    def know(self, secrets: Iterable[str]) -> None:
        """Know these secrets of a configuration, and forget what was known before."""
        self.configured = tuple(secrets)
        self._environment: dict[Any, Any] | None = None
        self._seen = dict.fromkeys(self.configured)

    @property
    def known(self) -> Known:
        # One look costs 2 µs, at each event; `os.environ` itself decodes all of its texts, in 50 µs.
        environment = getattr(os.environ, "_data", os.environ)
        if self._environment != environment:
            self._look(dict(environment))
        return self._found

    @property
    def secrets(self) -> tuple[str, ...]:
        """All of them: those of the configuration, of the environment, and of the files of SDKs."""
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
    """From here on `hide` knows these secrets of the configuration, instead of those of an earlier one."""
    _of_process.know(secrets)


def process_secrets() -> tuple[str, ...]:
    """All that this process knows to be secrets."""
    return _of_process.secrets


def hide(text: str) -> str:
    """The text without secrets, as this process knows them: the one way out for every text that a person
    or a file is to get (messages, errors, ledgers, logs)."""
    return process_redactor().text(text)


def longest_secret() -> int:
    """Characters that a secret may have, in all its forms."""
    return max(_LONGEST_SECRET, _of_process.known.longest)


def beginning(text: str, most: int) -> str:
    """The text, or as many of its first characters, up to `most`, as hold no part of a secret that is cut
    off there: half a secret is found by nobody who redacts what is left."""
    if len(text) <= most or most <= 0:
        return text[: max(0, most)]
    margin = longest_secret()
    start = max(0, most - margin)
    # What hiding makes of the first part with and without the rest differs where a secret is cut.
    cut, whole = hide(text[start:most]), hide(text[start : most + margin])
    same = next((at for at, pair in enumerate(zip(cut, whole, strict=False)) if pair[0] != pair[1]), len(cut))
    return text[:start] + cut[:same]


def process_redactor() -> Redactor:
    """The redactor that knows all that this process does, also what it comes to know later."""
    return _of_process


def _entry(value: Mapping[Any, Any]) -> tuple[str, str] | None:
    """The name in a mapping that is an entry of a list (`{"Key": …, "Value": …}`), and its other key."""
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
    # Whether a test passes, in a table of them.
    if tracked and name == "pass" and (_is_number(value) or str(value).lower() in ("yes", "no", "y", "n")):
        return value
    return value if _is_number(value) and is_count(name) else REDACTED


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
