"""A text that is too long is truncated where no part of a secret remains."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.delivery.shipping.progress import cause_text
from fmstune.secrets.redaction import REDACTED, beginning, hide
from fmstune.trackers.records import TrackerRun
from fmstune.trackers.values.plain import plain

SECRETS = ["Tr0ub4dor-zz9x7Q-and-more-of-it", "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"]
MOST = 400


@pytest.fixture(autouse=True)
def _known(_environment: None) -> None:
    os.environ["DB_PASSWORD"] = SECRETS[0]


@pytest.mark.parametrize("secret", SECRETS)
def test_wherever_a_text_is_truncated_no_part_of_a_secret_remains(secret: str) -> None:
    for at in range(MOST - len(secret) - 2, MOST + 2):
        text = "x " * (at // 2) + "y" * (at % 2) + " " + secret + " z" * 300
        kept = beginning(text, MOST)
        assert secret[:5] not in hide(kept), kept
        assert len(kept) >= min(MOST, at)


@given(st.text(" ab=:", max_size=600))
def test_a_text_without_secrets_is_kept_up_to_the_limit(text: str) -> None:
    assert beginning(text, MOST) == text[:MOST]


class Long:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize("secret", SECRETS)
def test_the_limits_of_objects_bytes_errors_and_notes_split_no_secret(secret: str) -> None:
    for most, shown in (
        (10_000, lambda text: plain(Long(text))),
        (10_000, lambda text: plain(text.encode())),
        (500, lambda text: cause_text(ValueError(text))),
        (2_000, lambda text: TrackerRun(note=text).note),
    ):
        text = ("ab " * most)[: most - 20] + " " + secret + " and" * 5_000
        assert secret[:5] not in hide(str(shown(text)))


@pytest.mark.parametrize(
    "entry",
    [
        {"Key": "api_key", "Value": "zQ81kdjWlq0aaPPzz"},
        {"NAME": "DB_PASSWORD", "VALUE": "letmein99"},
        {"ParameterKey": "DbPassword", "ParameterValue": "letmein99"},
        ["api_key", "=", "letmein99"],
        ["--x", "api_key", ":", "letmein99", "kept"],
    ],
)
def test_a_list_entry_is_hidden_by_the_name_in_it_in_any_notation(entry: object) -> None:
    from fmstune.secrets.redaction import process_redactor

    shown = str(process_redactor().value([entry], tracked=True))
    assert REDACTED in shown
    assert "letmein99" not in shown
    assert "zQ81" not in shown
    assert ("kept" in shown) == ("kept" in str(entry))


@pytest.mark.parametrize(
    "list_", [["embed_tokens", "=", "lm_head"], ["a", "=", "b"], ["api_key", "is", "kept"]]
)
def test_other_lists_stay_unchanged(list_: list[str]) -> None:
    from fmstune.secrets.redaction import process_redactor

    assert process_redactor().value(list_, tracked=True) == list_
