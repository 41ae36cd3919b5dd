"""Redaction: no secret reaches the journal, a file, a log or a tracker.

Three nets, since each alone has holes: values under secret-looking keys, texts of a known token's
shape (or a password in a URL), and the very values of secret-looking environment variables.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_SECRET_WORDS = frozenset(
    [
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "secrets",
        "apikey",
        "credential",
        "credentials",
        "bearer",
        "authorization",
        "cookie",
    ]
)
_SECRET_PAIRS = frozenset(
    {("api", "key"), ("private", "key"), ("access", "key"), ("secret", "key"), ("signing", "key"),
     ("account", "key"), ("encryption", "key"), ("auth", "key")}
)  # fmt: skip
# A tokenizer's tokens are words of the trade, not credentials.
_TOKENS_OF_THE_TRADE = frozenset(
    [
        "pad",
        "eos",
        "bos",
        "unk",
        "sep",
        "cls",
        "mask",
        "special",
        "image",
        "video",
        "audio",
        "per",
        "each",
        "new",
        "max",
        "min",
        "num",
        "mean",
        "first",
        "last",
        "next",
        "response",
        "decoder",
        "forced",
        "begin",
        "end",
        "prompt",
    ]
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# Shapes that the issuers document: Hugging Face, OpenAI and Anthropic, GitHub, GitLab, AWS, Slack,
# Google, JSON web tokens, W&B's own (v1) keys.
_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}|wandb_v\d+_\w{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----"
)
# One slash too: what is taken for a path loses the second.
_URL_PASSWORD = re.compile(r"(?<=:/)(/?)[^/\s:@]*:[^/\s@]+(?=@)")
_URL_QUERY = re.compile(
    r"(?i)([?&](?:[\w-]*(?:token|secret|password|api_?key|signature|access_?key))=)[^&\s#]+"
)
_SHORTEST_SECRET = 8
_WORKING_DIRECTORY = "PWD"  # of the shell; hidden, no absolute path of the data could be read again


class Redactor:
    """Replaces secrets by `[redacted]` in texts, and in mappings by key and by value."""

    def __init__(self, environment: Mapping[str, str] | None = None, secrets: tuple[str, ...] = ()) -> None:
        """`environment` defaults to that of this process; `secrets` are further texts to hide."""
        known = {
            value
            for key, value in (os.environ if environment is None else environment).items()
            if is_secret_key(key) and key != _WORKING_DIRECTORY
        }
        known |= set(secrets)
        texts = sorted((text for text in known if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, texts))) if texts else None

    def text(self, text: str) -> str:
        """The text without the secrets in it."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        text = _SHAPES.sub(REDACTED, text)
        if ":/" in text:
            text = _URL_QUERY.sub(rf"\1{REDACTED}", _URL_PASSWORD.sub(rf"\1{REDACTED}", text))
        return text

    def value(self, value: Any, key: str = "") -> Any:
        """The value without secrets, nested ones included; numbers, booleans and None are none."""
        if isinstance(value, str):
            return REDACTED if value and is_secret_key(key) else self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(name) if isinstance(name, str) else name: self.value(item, str(name))
                for name, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.value(item, key) for item in value]
        return value

    def mapping(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The mapping without secrets."""
        return dict(self.value(values))


def is_secret_key(key: str) -> bool:
    """Whether a name says that its value is a secret: `hub_token` does, `pad_token` does not."""
    words = [word.lower() for word in _WORDS.findall(key)]
    if _SECRET_WORDS.intersection(words) or _SECRET_PAIRS.intersection(itertools.pairwise(words)):
        return True
    if words and words[-1] == "token":
        return len(words) == 1 or words[-2] not in _TOKENS_OF_THE_TRADE
    return False
