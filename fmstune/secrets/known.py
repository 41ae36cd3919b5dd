"""The known secrets of this process, and patterns that find them even if they are escaped.

They come from the environment, from SDKs' credential files, and from a configuration.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from fmstune.secrets.forms import REDACTED, is_placeholder, url_secrets
from fmstune.secrets.names import is_secret_name, names_credential

_SHORTEST = 4
"""The minimum length of a secret that is hidden as a word. Shorter ones are hidden only by the name of their
value."""
_SHORTEST_ANYWHERE = 8
# Too long to be part of a path. A truncated log may also join two of them.
_LONG = 24
# `postgres`, `changeme` and `training` are passwords, but also words in paths and prose.
_COMMON = re.compile(r"[A-Za-z]{1,12}|\d{1,7}")
# Composed of words, such as `my-password-2`: hiding it within a longer name would damage that name.
_WORDS = re.compile(r"(?:[A-Za-z]+\d*|\d+)(?:[._-](?:[A-Za-z]+\d*|\d+))*")
# As a word: not in a path, a file name or a longer name. `\n` and `\"` are JSON escapes.
_AS_WORD = r"(?:(?<![\w./\\-])|(?<=\\[nrt]))(?:{})(?![\w/-]|\\(?![\"'nrt\\])|\.\w)"
_AFTER_ITS_NAME = (
    r"((?i:pass(?:word|wd|phrase)?|pwd|secret|api[ _-]?key)(?:[\"']?\s?[:=]\s?|\s+is\s+)[\"']?)"
    r"(?:{})(?![\w/-])"
)
_MOST_BYTES = 1 << 16

# Path relative to the home directory, variable with another path, and whether the whole file is a secret.
# Otherwise assignments to secret names, `password …` of netrc, and passwords in URLs are read.
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
    """The values of variables with secret names, and the passwords in all URLs."""
    for name, value in environment.items():
        if is_secret_name(name) and not _is_place(value):
            yield value.strip()
        if "://" in value:
            yield from url_secrets(value)


def in_files(environment: Mapping[str, str]) -> Iterator[str]:
    """The secrets in the credential files of Git, W&B, the Hugging Face hub, AWS and others."""
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


def config_secrets(tables: Mapping[str, Any]) -> Iterator[str]:
    """The secrets in a configuration."""
    for table, values in tables.items():
        yield from secret_texts(values, tracked=table == "params")


def secret_texts(values: Any, name: str = "", *, tracked: bool = False) -> Iterator[str]:
    """The secrets in a tracker's options: values with secret names, at any depth, and passwords in URLs. In
    `tracked` values, a `token` may be an ordinary word, which is not a secret elsewhere, either."""
    says_so = names_credential if tracked else is_secret_name
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from secret_texts(value, name if says_so(name) else str(key), tracked=tracked)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from secret_texts(value, name, tracked=tracked)
    elif isinstance(values, (str, int, float)) and not isinstance(values, bool):
        text = str(values)
        if says_so(name) and not _is_place(text):
            yield text
        if "://" in text:
            yield from url_secrets(text)


@dataclasses.dataclass(frozen=True)
class Known:
    """The known secrets, by where they are hidden."""

    anywhere: re.Pattern[str] | None = None
    """Hidden within any text, raw or escaped. Secrets that are short or composed of words are hidden only as
    whole words, since they may be part of a path or a name."""
    after_name: re.Pattern[str] | None = None
    """Common words: hidden after a word such as "password"."""
    alone: frozenset[str] = frozenset()
    """The same common words, hidden as whole values."""
    longest: int = 0
    """The length of the longest secret, in characters."""

    @classmethod
    def of(cls, secrets: Iterable[str]) -> Known:
        """Build the patterns for the given secrets."""
        known = {secret for secret in secrets if len(secret) >= _SHORTEST and not is_placeholder(secret)}
        common = {secret for secret in known if _COMMON.fullmatch(secret)}
        anywhere, words = set(), set()
        for form in {form for secret in known for form in _forms(secret)} - common - {REDACTED}:
            if len(form) < _SHORTEST_ANYWHERE or (len(form) < _LONG and _WORDS.fullmatch(form)):
                words.add(form)
            else:
                anywhere.add(form)
        found = [_any_of(anywhere)] if anywhere else []
        found += [_AS_WORD.format(_any_of(words))] if words else []
        return cls(
            re.compile("|".join(found)) if found else None,
            re.compile(_AFTER_ITS_NAME.format(_any_of(common))) if common else None,
            frozenset(common),
            max(map(len, anywhere | words | common), default=0),
        )

    def hide(self, text: str) -> str:
        """Hide the known secrets in a text."""
        if self.anywhere is not None:
            text = self.anywhere.sub(REDACTED, text)
        if self.after_name is not None:
            text = self.after_name.sub(rf"\1{REDACTED}", text)
        return text


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text))))


def _forms(secret: str) -> Iterator[str]:
    if len(secret) < _SHORTEST or is_placeholder(secret):
        return
    # Logs are read line by line, so a multi-line key is also hidden line by line.
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
        with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate cannot be URL-encoded
            for encoded in (quote(text), quote(text, safe=""), quote_plus(text)):
                yield encoded
                yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), encoded)


def _is_place(value: str) -> bool:
    """Whether a value is an existing path: the location of a secret is not a secret itself, and hiding it
    would break the paths of data below it."""
    if not value.startswith(("/", "~")):
        return False
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # the name is too long, or there is no home
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
