"""The very texts that are known to be secrets here, and a pattern that finds them however they are escaped.

They come from the environment, from the files that SDKs keep credentials in, and from a configuration.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from fmstune.secrets import REDACTED, is_placeholder, is_secret_name, url_secrets

_SHORTEST = 8
"""Characters of a text that is hidden wherever it stands. Shorter ones are words: they are hidden by the name
of their value alone."""
_MOST_BYTES = 1 << 16

# Relative to the home directory, and the variable that names another place. What is read of them are the
# assignments to secret names, `password …` of netrc, and passwords in URLs; of a `whole` file all.
_FILES = (
    (".netrc", "NETRC", False),
    ("_netrc", "", False),
    (".config/wandb/settings", "", False),
    (".cache/huggingface/token", "HF_TOKEN_PATH", True),
    (".cache/huggingface/stored_tokens", "HF_STORED_TOKENS_PATH", False),
    (".aws/credentials", "AWS_SHARED_CREDENTIALS_FILE", False),
    (".git-credentials", "", False),
    (".comet.config", "", False),
    (".mlflow/credentials", "", False),
)
_IN_FILES = re.compile(r"(?im)^\s*([\w.-]+)\s*[=:]\s*(\S.*?)\s*$|\b(password)\s+(\"[^\"\n]+\"|\S+)")


def in_environment(environment: Mapping[str, str]) -> Iterator[str]:
    """The values of the variables with secret names, and the passwords in any URL."""
    for name, value in environment.items():
        if is_secret_name(name) and not _is_place(value):
            yield value.strip()
        if "://" in value:
            yield from url_secrets(value)


def in_files(environment: Mapping[str, str]) -> Iterator[str]:
    """The secrets in the files in which Git, W&B, the Hugging Face hub, AWS and others keep them."""
    home = Path(environment.get("HOME") or "/nonexistent")
    for name, variable, whole in _FILES:
        path = Path(environment.get(variable) or home / name) if variable else home / name
        if whole and not environment.get(variable) and environment.get("HF_HOME"):
            path = Path(environment["HF_HOME"]) / "token"
        text = _read(path)
        if whole:
            yield text.strip()
            continue
        yield from url_secrets(text)
        for name_of, value, password, of_password in _IN_FILES.findall(text):
            if password or is_secret_name(name_of):
                yield (of_password or value).strip("\"'")


def secret_texts(values: Any, name: str = "") -> Iterator[str]:
    """The secrets in a configuration or in a tracker's options: what stands under secret names, at any
    depth, and the passwords in URLs."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from secret_texts(value, name if is_secret_name(name) else str(key))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from secret_texts(value, name)
    elif isinstance(values, (str, int, float)) and not isinstance(values, bool):
        text = str(values)
        if is_secret_name(name) and not _is_place(text):
            yield text
        if "://" in text:
            yield from url_secrets(text)


def pattern_of(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the secrets, as they are and as programs write them; `None` without any."""
    forms = {form for secret in secrets for form in _forms(secret) if len(form) >= _SHORTEST}
    longest_first = sorted(forms - {REDACTED}, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _forms(secret: str) -> Iterator[str]:
    if len(secret) < _SHORTEST or is_placeholder(secret):
        return
    # A log is read line by line, and so a key of several lines is hidden line by line too.
    lines = [line.strip() for line in secret.splitlines()] if "\n" in secret or "\r" in secret else []
    for text in (secret, *(line for line in lines if not line.startswith("-----"))):
        if len(text) < _SHORTEST:
            continue
        yield text
        data = text.encode("utf-8", "surrogatepass")
        yield base64.b64encode(data).decode().rstrip("=")
        escaped = json.dumps(text)[1:-1]
        yield from (escaped, json.dumps(escaped)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        yield from (repr(text)[1:-1], repr(data)[2:-1], html.escape(text))
        with contextlib.suppress(UnicodeEncodeError):  # half a character has no form in a URL
            for encoded in (quote(text), quote(text, safe=""), quote_plus(text)):
                yield encoded
                yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), encoded)


def _is_place(value: str) -> bool:
    """Whether a value is the path of something that exists: where a secret lies is none itself, and with it
    hidden no path of the data under it could be read again."""
    if not value.startswith(("/", "~")):
        return False
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # a name that is too long, no home
        return Path(value).expanduser().exists()
    return False


def _read(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return ""
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
