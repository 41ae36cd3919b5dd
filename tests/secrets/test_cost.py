"""The cost of hiding secrets grows linearly with the text: megabytes of text must not block a training."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fmstune.secrets import forms
from fmstune.secrets.redaction import Redactor

PARTS = st.sampled_from(
    [
        "password:", "password=", 'password="', "password='", 'password=\\"', "api_key: ", "Cookie: ",
        "authorization: ", "bearer ", "Basic ", "mysql", "mysql-", "-p", "login ", " password ", "eyJ", "sk-",
        "--api-key ", '"--token", ', "curl -u ", "http://", "://", "a:b@", "@", "?sig=", "&", "hf_", "ghp_",
        "SG.", "wandb ", "api key provided", "-----BEGIN PRIVATE KEY-----", "a", "A", "0", "/", "\\", '"',
        "'", "token", "=", ":", ";", ",", ".", "-", "_", " ", "\t", "\n",
    ]
)  # fmt: skip
REDACTOR = Redactor({"MY_PASSWORD": "hunter2hunter3"})
SHORT, LONG = 2_000, 16_000


def seconds(text: str, *, tracked: bool, enough: float = 0.0) -> float:
    """The CPU time that redaction takes, the minimum of several tries, or one that is short enough."""
    found = []
    for _ in range(3):
        began = time.thread_time()
        REDACTOR.text(text, tracked=tracked)
        found.append(time.thread_time() - began)
        if found[-1] < enough:
            break
    return min(found)


@settings(max_examples=60)
@given(st.lists(PARTS, min_size=1, max_size=4), st.lists(PARTS, max_size=2), st.booleans())
@example(["password:"], [], False)
@example(["Cookie: "], [], False)
@example(["/"], ["Cookie: "], False)
@example(["mysql-"], [], False)
@example(["token="], [], True)
def test_eight_times_the_text_takes_about_eight_times_as_long(
    repeated: list[str], before: list[str], tracked: bool
) -> None:
    unit, head = "".join(repeated), "".join(before)
    short, long = (head + unit * (size // len(unit) + 1) for size in (SHORT, LONG))
    took = seconds(long, tracked=tracked, enough=0.004)
    # A quadratic search takes 64 times as long.
    assert took < 0.004 or took < 25 * seconds(short, tracked=tracked)


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize(
    "unit",
    ["password:", "Cookie: ", "/", "mysql-", "token=a/", 'password="', "a\\", "token=", "/token=",
     "token=x1-", "token:", "token=abcdefg1h2-"],
)  # fmt: skip
def test_sixteen_times_the_text_takes_about_sixteen_times_as_long(unit: str, tracked: bool) -> None:
    short, long = ("Cookie: " + unit * (size // len(unit)) for size in (4_000, 64_000))
    took = seconds(long, tracked=tracked, enough=0.1)
    # A quarter of a megabyte takes about a second; a quadratic search takes 256 times as long.
    assert took < 0.1 or took < 40 * seconds(short, tracked=tracked)


@given(st.lists(PARTS | st.text("aZ09", min_size=6, max_size=20), min_size=1, max_size=12))
def test_a_name_within_a_long_value_is_classified_like_a_separate_one(parts: list[str]) -> None:
    value = "".join(parts)
    found = forms._random_parts(value, 0, len(value))
    assert forms._is_random_at(found, 0, len(value)) == forms.looks_random(value)


def test_a_long_secret_without_quotes_is_hidden_to_its_end() -> None:
    secret = "aB3dE5fG" * 1000
    assert REDACTOR.text(f"api_key={secret} and more") == "api_key=[redacted] and more"
    assert REDACTOR.text(f'api_key="{secret}" and more') == 'api_key="[redacted]" and more'


@settings(max_examples=300, deadline=None)
@given(st.from_regex(forms._FORMS, fullmatch=True) | st.from_regex(forms._PREFIXED, fullmatch=True))
def test_every_form_has_one_of_the_starts_that_long_texts_are_searched_for(found: str) -> None:
    assert any(start in found for start in forms._STARTS)


@pytest.mark.parametrize(
    "secret",
    ["Authorization: Bearer abcdef123", "COOKIE: a=b1", "Bearer abc12345", "bAsIc dXNlcjpwYXNz",
     "login me password hunter22", "--api-key abc123def", "mysql -u me -phunter22",
     "Incorrect API key provided: abcd1234", "curl -u me:hunter22", "hf_" + "aB3" * 12,
     "wandb: " + "0a" * 20, "password=hunter22", "https://me:hunter22@host/x"],
)  # fmt: skip
def test_a_secret_in_a_long_text_is_hidden_as_in_a_short_one(secret: str) -> None:
    short = REDACTOR.text(f"a {secret}\n")
    assert "[redacted]" in short
    prose = "the fox jumps over the dog.\n" * 100
    assert REDACTOR.text(f"{prose}a {secret}\n{prose}") == f"{prose}{short}{prose}"


class _Unused:
    """A pattern that must not be searched for."""

    def sub(self, *_: object) -> str:
        raise AssertionError("a costly pattern was searched for in prose")


def test_costly_patterns_are_searched_for_only_where_a_secret_may_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_FORMS", "_PREFIXED", "_HEADER", "_PROVIDED", "_WANDB", "_MYSQL"):
        monkeypatch.setattr(forms, name, _Unused())
    prose = "The quick brown fox jumps over the lazy dog. " * 2_000
    assert REDACTOR.text(prose, tracked=True) == prose
