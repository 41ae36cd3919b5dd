"""Redaction: no secret reaches the journal, a file, a log, a terminal or a tracker.

Three nets, since each alone has holes: values under secret names, texts whose form says what they are (both
in `fmstune.secrets`), and the very texts that are known to be secrets here, however they are escaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from fmstune.delivery.known_secrets import in_environment, in_files, pattern_of, secret_texts
from fmstune.secrets import REDACTED, hide_forms, is_count, is_placeholder, is_secret_name

__all__ = [
    "REDACTED",
    "Redactor",
    "hide",
    "holds_redacted",
    "know_secrets",
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
        known = [*in_environment(given), *secrets, *((*in_files(given), *_secrets) if own else ())]
        self._known = pattern_of(known)

    def text(self, text: str) -> str:
        """The text without the secrets in it. Doing it twice changes nothing more."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        return hide_forms(text)

    def value(self, value: Any, name: str = "") -> Any:
        """The value without secrets, nested ones included. Under a secret name nothing stays but truth
        values and nothing itself; elsewhere numbers are no secrets."""
        return self._value(value, name, is_secret_name(name))

    def _value(self, value: Any, name: str, secret: bool) -> Any:
        if isinstance(value, Mapping):
            below = {key: self.value(item, name if secret else str(key)) for key, item in value.items()}
            return self._renamed(below)
        if isinstance(value, (list, tuple)):
            return [self._value(item, name, secret) for item in value]
        if secret:
            return _hidden(value, name)
        return self.text(value) if isinstance(value, str) else value

    def mapping(self, values: Mapping[str, Any], name: str = "") -> dict[str, Any]:
        """The mapping without secrets; with the name that it has, such as a namespace of params."""
        return dict(self.value(values, name))

    def metrics(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics without secrets in their names and texts. A number is a measurement, whatever its name."""
        return self._renamed({key: self.metric(item, key) for key, item in values.items()})

    def metric(self, value: Any, name: str) -> Any:
        """The value of a metric without secrets."""
        return value if _is_number(value) else self.value(value, name)

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


def holds_redacted(value: Any) -> bool:
    """Whether a secret was taken out of a value, so that it can't be used as it is."""
    if isinstance(value, Mapping):
        return any(map(holds_redacted, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_redacted, value))
    return isinstance(value, str) and REDACTED in value


_secrets: tuple[str, ...] = ()
_of_process: tuple[dict[str, str], tuple[str, ...], Redactor] | None = None


def know_secrets(secrets: Iterable[str]) -> None:
    """From here on `hide` knows these secrets of the configuration, instead of those of an earlier one."""
    global _secrets
    _secrets = tuple(secrets)


def process_secrets() -> tuple[str, ...]:
    """The secrets of the configuration, as `know_secrets` was given them."""
    return _secrets


def hide(text: str) -> str:
    """The text without secrets, as this process knows them: the one way out for every text that a person
    or a file is to get (messages, errors, ledgers, logs)."""
    return process_redactor().text(text)


def process_redactor() -> Redactor:
    """The redactor that knows all that this process does."""
    global _of_process
    environment = dict(os.environ)
    if _of_process is None or _of_process[:2] != (environment, _secrets):
        _of_process = (environment, _secrets, Redactor())
    return _of_process[2]


def _hidden(value: Any, name: str) -> Any:
    if value is None or value == "" or isinstance(value, bool):
        return value
    if isinstance(value, str) and is_placeholder(value):  # tool_token = "<tool>"
        return value
    return value if _is_number(value) and is_count(name) else REDACTED


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
