"""The closest name, or none."""

from __future__ import annotations

import pytest

from fmstune.config.load import known_keys
from fmstune.config.suggest import ALIASES, closest, hint


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_points_to_a_key_that_exists(alias: str) -> None:
    assert ALIASES[alias] in known_keys()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "training.learning_rate"),
        ("--lr", None),
        ("epochs", "training.num_train_epochs"),
        ("batch_size", "training.per_device_train_batch_size"),
        ("training.batch-size", "training.per_device_train_batch_size"),
        ("LR", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("data.learning_rate", "training.learning_rate"),
        ("training.leraning_rate", "training.learning_rate"),
        ("lora.alhpa", "lora.alpha"),
        ("report_to", "tracking.trackers"),
        ("max_seq_length", "training.max_length"),
        ("banana", None),
        ("training.xyzzy", None),
        ("", None),
        (".", None),
        ("q" * 5000, None),
    ],
)
def test_the_closest_key(name: str, meant: str | None) -> None:
    assert closest(name, known_keys()) == meant


def test_a_key_is_closest_to_itself() -> None:
    keys = known_keys()
    wrong = {key: closest(key, keys) for key in keys if closest(key, keys) != key}
    assert not wrong


def test_no_hint_is_no_text() -> None:
    assert hint("banana", ["wandb"]) == ""
    assert hint("wandbb", ["wandb"]) == " Did you mean wandb?"
