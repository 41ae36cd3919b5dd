"""Random secrets in random strings and structures."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote, quote_plus

from hypothesis import assume, example, given
from hypothesis import strategies as st

from fmstune.secrets.forms import looks_random
from fmstune.secrets.redaction import (
    REDACTED,
    Redactor,
)
from tests.support.secret_texts import FORMS, OTHER_NAMES, SECRET_NAMES

words = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-./", max_size=30)
known = st.text(min_size=8, max_size=40).filter(
    lambda text: len(text.strip()) >= 8 and "[redacted]" not in text and text == text.strip()
)


scalars: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
)


def as_written(secret: str) -> list[str]:
    """A secret as programs write it in strings."""
    forms = [
        secret,
        json.dumps(secret),
        json.dumps(json.dumps(secret)),
        json.dumps(secret, ensure_ascii=False),
    ]
    forms += [repr(secret), f"{secret}\n".encode().decode()]
    if not any("\ud800" <= char <= "\udfff" for char in secret):
        forms += [repr(secret.encode()), quote(secret), quote_plus(secret), quote(secret, safe="")]
        forms += [base64.b64encode(secret.encode()).decode()]
    return forms


@given(known, st.text(max_size=30), st.text(max_size=30), st.data())
def test_a_known_secret_is_found_however_it_is_escaped(
    secret: str, before: str, after: str, data: st.DataObject
) -> None:
    written = data.draw(st.sampled_from(as_written(secret)))
    bare = written.strip("'\"\\\n").rstrip("=")
    assume(len(bare) >= 8 and bare not in before + after)
    assume(not secret.isascii() or not secret.isalpha())  # a common word is covered by another test
    hidden = Redactor({}, [secret]).text(f"{before} {written} {after}")
    assert bare not in hidden


@given(st.lists(st.sampled_from(FORMS) | st.text(max_size=30), max_size=6), st.sampled_from(FORMS))
def test_a_token_is_hidden_whatever_text_surrounds_it(parts: list[str], secret: str) -> None:
    assert secret not in Redactor({}).text(" ".join([*parts, secret, *reversed(parts)]))


PIECES = [*FORMS, "token=", "api_key:", '"', "'", "\\", "://", "u:p@h", "@", "[", "]", REDACTED, "password ",
          "login a ", "--token ", "?sig=", "Authorization: ", "Cookie: a=", "\n", " ",
          "=", "wandb "]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12), st.sampled_from(["", " "]))
@example(["Authorization: ", "Basic x"], "")
def test_redaction_is_idempotent(parts: list[str], between: str) -> None:
    redactor = Redactor({"X_TOKEN": "planted-secret"})
    once = redactor.text(between.join(parts))
    assert redactor.text(once) == once


@given(
    st.recursive(
        scalars | st.sampled_from([*FORMS, "a planted-secret b"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.text(max_size=10) | st.sampled_from([*SECRET_NAMES, *FORMS]), inner, max_size=3
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(SECRET_NAMES),
    st.text(min_size=3, alphabet="qxz"),
)
def test_no_structure_lets_a_secret_through_and_none_loses_an_entry(
    value: Any, name: str, short: str
) -> None:
    redactor = Redactor({"X_TOKEN": "planted-secret"})
    hidden = redactor.mapping({"a": value, "b": {name: [short, {"x": short}]}})
    text = json.dumps(hidden)
    assert not any(secret in text for secret in ("planted-secret", *FORMS, *map(json.dumps, FORMS)))
    assert short not in json.dumps(hidden["b"])
    assert size(hidden["a"]) == size(value)
    assert json.dumps(redactor.mapping(hidden)) == text


def size(value: Any) -> int:
    """The number of leaves of a structure."""
    if isinstance(value, dict):
        return 1 + sum(map(size, value.values()))
    return 1 + sum(map(size, value)) if isinstance(value, list) else 1


@given(
    st.dictionaries(st.sampled_from(OTHER_NAMES), scalars | st.lists(words, max_size=3) | words, max_size=5)
)
def test_values_without_secrets_are_unchanged(values: dict[str, Any]) -> None:
    tokens = [text for name, text in values.items() if "token" in name and isinstance(text, str)]
    assume(not any(map(looks_random, tokens)))
    assert repr(Redactor({}).mapping(values)) == repr(values)
