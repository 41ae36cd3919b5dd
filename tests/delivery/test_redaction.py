"""No secret gets through, and nothing that is no secret is hidden."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.delivery.redaction import REDACTED, Redactor, is_secret_key

SECRETS = [
    "hf_abcdefghijklmnopqrstuvwx",
    "sk-" + "proj-0123456789" * 2,
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0abcdefghijklmnop",
    "glpat-abcdefghij0123456789",
    "AKIAABCDEFGHIJKLMNOP",
    "xoxb-1234567890-abcdefghij",
    "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2QT4",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_token_of_a_known_shape_is_hidden_wherever_it_stands(secret: str) -> None:
    redactor = Redactor({})
    assert secret not in redactor.text(f"failed with key {secret}, see the log")
    assert secret not in str(redactor.mapping({"note": [f"x {secret}"], secret: 1}))


@pytest.mark.parametrize(
    "key",
    ["hub_token", "token", "HF_TOKEN", "api_key", "apiKey", "WANDB_API_KEY", "password", "db.password",
     "AWS_SECRET_ACCESS_KEY", "private-key", "client_secret", "Authorization"],
)  # fmt: skip
def test_the_value_of_a_secret_looking_key_is_hidden(key: str) -> None:
    assert is_secret_key(key)
    assert Redactor({}).mapping({key: "abc"}) == {key: REDACTED}


@pytest.mark.parametrize(
    "key",
    ["pad_token", "eos_token", "bos_token", "tokenizer", "num_tokens", "tokens_per_second", "max_new_tokens",
     "mean_token_accuracy", "author", "key", "monkey", "keys", "image_token", "session", "bypass"],
)  # fmt: skip
def test_the_words_of_the_trade_are_no_secrets(key: str) -> None:
    assert not is_secret_key(key)
    assert Redactor({}).mapping({key: "<pad>"}) == {key: "<pad>"}


def test_passwords_in_addresses_are_hidden_and_the_address_stays() -> None:
    redactor = Redactor({})
    assert redactor.text("postgres://me:hunter2@db:5432/x") == f"postgres://{REDACTED}@db:5432/x"
    assert redactor.text("https://h/x?token=abc&run=1") == f"https://h/x?token={REDACTED}&run=1"
    assert redactor.text("https://wandb.ai/team/project") == "https://wandb.ai/team/project"


def test_the_values_of_secret_environment_variables_are_hidden_everywhere() -> None:
    redactor = Redactor({"MY_API_KEY": "0123456789abcdef", "EDITOR": "emacs-of-my-own", "SHORT_TOKEN": "abc"})
    assert redactor.text("using 0123456789abcdef here") == f"using {REDACTED} here"
    assert redactor.text("emacs-of-my-own abc") == "emacs-of-my-own abc"


def test_a_commit_hash_and_numbers_are_left_alone() -> None:
    values = {"commit": "2f4d1a819b424bacb61d94122f4d1a819b424bac", "loss": 1.5, "ok": True, "none": None}
    assert Redactor({}).mapping(values) == values


@given(st.dictionaries(st.text(), st.text() | st.floats() | st.lists(st.text(), max_size=3), max_size=5))
def test_redaction_takes_anything_and_keeps_the_shape(values: dict[str, object]) -> None:
    redacted = Redactor({"X_TOKEN": "planted-secret"}).mapping({"a": values, "b": "planted-secret"})
    assert set(redacted) == {"a", "b"}
    assert "planted-secret" not in str(redacted)


@given(st.text(), st.sampled_from(SECRETS), st.text())
def test_no_text_around_a_token_lets_it_through(before: str, secret: str, after: str) -> None:
    assert secret not in Redactor({}).text(f"{before} {secret} {after}")


def test_the_working_directory_of_a_shell_is_no_password() -> None:
    redactor = Redactor({"PWD": "/home/somebody/work", "DB_PWD": "0123456789abcdef"})
    assert redactor.text("/home/somebody/work/train.jsonl") == "/home/somebody/work/train.jsonl"
    assert redactor.text("0123456789abcdef") == REDACTED
