"""A suggestion is right, or is not made."""

from __future__ import annotations

import pytest

from fmstune.config.check.suggest import ALIASES, closest, hint
from fmstune.config.load.load import known_keys
from fmstune.config.methods.known import METHODS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("training.lerning_rate", "training.learning_rate"),
        ("lora.learning_rate", "training.learning_rate"),
        ("training.lora_rr", "lora.r"),
        ("lora.aplha", "lora.alpha"),
        ("training.dropuot", "lora.dropout"),
        ("lr", "training.learning_rate"),
        ("epochs", "training.num_train_epochs"),
        ("batch_size", "training.per_device_train_batch_size"),
        ("batchsize", "training.per_device_train_batch_size"),
        ("max_seq_length", "training.max_length"),
        ("model_name_or_path", "model.path"),
        ("dataset", "data.train"),
        ("report_to", "tracking.trackers"),
        ("gradient_accumulation", "training.gradient_accumulation_steps"),
        ("warmup", "training.warmup_steps"),
        ("Learning-Rate", "training.learning_rate"),
        ("data.trian", "data.train"),
        ("training.batch-size", "training.per_device_train_batch_size"),
        ("LR", "training.learning_rate"),
        ("training.leraning_rate", "training.learning_rate"),
        ("training.per_device_batch_size", "training.per_device_train_batch_size"),
        ("training.max_eval_samples", "data.eval"),
        ("data.path", "data.train"),
        ("model.name", "model.path"),
        ("training.train_on_inputs", "data.train_on"),
    ],
)
def test_the_intended_setting_is_found(name: str, meant: str) -> None:
    assert closest(name, known_keys()) == meant


@pytest.mark.parametrize(
    "name",
    [
        *("banana", "temperature", "top_p", "num_beams", "sweep", "ema", "hidden_size"),
        *("patience", "clip", "reward_model", "use_flash", "strategy", "use_ring_attention", "kl_coef"),
        "training.zzz",
        "--lr",
    ],
)
def test_nothing_is_suggested_if_nothing_is_close(name: str) -> None:
    assert closest(name, known_keys()) is None
    assert hint(name, known_keys()) == ""


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_each_alias_refers_to_an_existing_setting(alias: str) -> None:
    assert any(ALIASES[alias] in known_keys(method) for method in METHODS)


def test_aliases_can_be_passed() -> None:
    assert closest("speed", ["a.b"], {"speed": "a.b"}) == "a.b"


@pytest.mark.parametrize("name", ["", ".", "  ", "é", "a" * 1000])
def test_no_name_raises(name: str) -> None:
    assert closest(name, known_keys()) is None


def test_a_key_is_closest_to_itself() -> None:
    keys = known_keys()
    wrong = {key: closest(key, keys) for key in keys if closest(key, keys) != key}
    assert not wrong


def test_the_closest_of_several_names_is_found() -> None:
    assert hint("wandbb", ["wandb"]) == " Did you mean wandb?"
    assert hint("banana", ["wandb"]) == ""
