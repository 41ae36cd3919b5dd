"""The settings of `[training]` are those of the run's method."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.inspect.dump import option_table, to_toml
from fmstune.config.inspect.explain import chosen, explain
from fmstune.config.load.layers import known_keys
from fmstune.config.load.load import load
from fmstune.config.methods.known import METHODS
from fmstune.config.schema.managed import OWNED_TRAINING
from fmstune.config.schema.training import training_fields
from fmstune.errors import ConfigError
from tests.support.loading import DEMO_FILE, load_text, refusal

PREFERENCES = [method for method in METHODS if method != "sft"]


def config_class(method: str) -> Any:
    package, file, name = METHODS[method].config
    return getattr(importlib.import_module(f"{package}.{file.removesuffix('.py').replace('/', '.')}"), name)


@pytest.mark.parametrize("method", PREFERENCES)
def test_the_fields_are_those_of_the_methods_own_class(method: str) -> None:
    import transformers.training_args

    cls = config_class(method)
    real = {field.name: field for field in dataclasses.fields(cls) if field.init}
    read = training_fields(method)
    assert set(read) == set(real)
    names = {**vars(typing), **vars(transformers.training_args)}
    for name, field in read.items():
        declared = real[name].type
        declared = eval(declared, names) if isinstance(declared, str) else declared
        wanted = str | list[str] if (method, name) == ("dpo", "loss_type") else declared
        wanted = bool | wanted if name == "fsdp" else wanted
        assert eval(field.annotation, names) == wanted, name
        if real[name].default is not dataclasses.MISSING and name != "optim":
            assert field.default == real[name].default, name


def test_every_dpo_loss_is_known_by_its_name() -> None:
    from inspect import getsource

    from trl import DPOTrainer

    choices = training_fields("dpo")["loss_type"].choices or ()
    source = getsource(DPOTrainer._compute_loss)
    assert {"sigmoid", "ipo", "hinge", "apo_zero", "sft"} <= set(choices)
    assert all(f'"{name}"' in source for name in choices)
    assert source.count("loss_type ==") == len(choices)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_options_matches_the_method(method: str) -> None:
    assert [option.key for option in option_table(method)] == known_keys(method)


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        (
            "sft",
            "beta=0.2",
            "training.beta is a setting of dpo, kto and orpo; this run's method is sft (--method).",
        ),
        ("dpo", "packing=true", "training.packing is a setting of sft; this run's method is dpo"),
        ("reward", "beta=1", "training.beta is a setting of dpo, kto and orpo; this run's method is reward"),
        ("kto", "desirable_wieght=1", "no setting training.desirable_wieght. Did you mean training.des"),
        ("dpo", "completion_only_loss=true", "there is no setting training.completion_only_loss."),
        ("sft", "completion_only_loss=true", "training.completion_only_loss is managed by fmstune"),
        ("reward", "chat_template_path='x'", "is managed by fmstune: use model.chat_template."),
        ("kto", "local_rank=1", "training.local_rank is managed by fmstune: torchrun sets it."),
        ("dpo", "loss_type=ippo", "sigmoid_norm. Did you mean ipo?"),
        ("dpo", "loss_type=['sigmoid','sfft']", "Did you mean sft?"),
        ("kto", "loss_type='kta'", "training.loss_type = 'kta' is not one of kto, apo_zero_unpaired."),
        ("dpo", "f_divergence_type=forward", "is not one of reverse_kl, forward_kl, js_divergence"),
        ("dpo", "beta=0", "training.beta = 0 is out of range; it must be more than 0."),
        ("dpo", "loss_type=exo_pair", "needs label smoothing: set training.label_smoothing = 1e-3."),
        ("dpo", "loss_weights=[1,2]", "training.loss_weights has 2 weights for 1 loss "),
        ("dpo", "loss_type=[]", "names no loss; leave it out for sigmoid."),
        ("kto", "per_device_train_batch_size=1", "is too small: kto compares each row with the others"),
        ("kto", "train_sampling_strategy=group_by_length", '"group_by_length" is only for sft: rows of kto'),
        ("dpo", "train_sampling_strategy=batch_rebalance", '"batch_rebalance" is only for sft: rows of dpo'),
        (
            "kto",
            "train_sampling_strategy=random",
            "does not work with kto, which builds its batches in advance",
        ),
    ],
)
def test_a_setting_of_another_method_is_refused(
    method: str, setting: str, message: str, tmp_path: Path
) -> None:
    given = [("run.method", method, "--method")]
    told = refusal(tmp_path, sets=[f"training.{setting}"], flags=given)
    assert message in told
    assert told.startswith("--set: ")


def test_an_unknown_method_is_the_only_error_reported(tmp_path: Path) -> None:
    told = refusal(tmp_path, sets=["training.beta=1"], flags=[("run.method", "dop", "--method")])
    assert told == "--method: run.method = 'dop' is not one of sft, dpo, kto, reward, orpo."
    told = refusal(tmp_path, sets=["run.method=3", "training.beta=1"])
    assert told.startswith("--set: run.method = 3 is an integer;")


@pytest.mark.parametrize("place", ["file", "--set", "flag"])
def test_the_method_is_known_before_the_fields_are_checked_wherever_it_is_set(
    place: str, tmp_path: Path
) -> None:
    text = f"{DEMO_FILE}[training]\nbeta = 0.2\nloss_type = 'ipo'\n"
    given: dict[str, Any] = {}
    if place == "file":
        text += "[run]\nmethod = 'dpo'\n"
    elif place == "--set":
        given["sets"] = ["run.method=dpo"]
    else:
        given["flags"] = [("run.method", "dpo", "--method")]
    config = load_text(tmp_path, text, **given)
    assert (config.training["beta"], config.training["loss_type"]) == (0.2, "ipo")


def test_a_recorded_configuration_is_read_back_unchanged(tmp_path: Path) -> None:
    sets = ["run.method=dpo", 'training.loss_type=["sigmoid", "sft"]', "training.loss_weights=[1.0, 0.5]"]
    config = load_text(tmp_path, DEMO_FILE, sets)
    (tmp_path / "again.toml").write_text(to_toml(config))
    again = load(tmp_path / "again.toml", cwd=tmp_path)
    assert (again.run, again.training) == (config.run, config.training)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_uses_ten_times_the_learning_rate_that_trl_uses_for_all_weights(
    method: str, tmp_path: Path
) -> None:
    sets = [f"run.method={method}"]
    assert "learning_rate" not in load_text(tmp_path, DEMO_FILE.replace('"demo"', '"./"', 1), sets).training
    config = load_text(tmp_path, DEMO_FILE.replace('"demo"', '"./"', 1), [*sets, "lora.enabled=true"])
    assert config.training["learning_rate"] == METHODS[method].lora_learning_rate
    full = training_fields(method)["learning_rate"].default
    assert METHODS[method].lora_learning_rate == pytest.approx(10 * full)


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("reward", "samples.rows=2", "samples.rows need a model that generates text"),
        ("dpo", "data.train_on=all", 'data.train_on = "all" is only for sft'),
        ("kto", "training.precompute_ref_log_probs=true", "leave one"),
        ("dpo", "training.loss_type=hinge", 'does not work with the loss "hinge"'),
        ("dpo", "training.loss_type=['sigmoid','sft']", "a mean over tokens, not over pairs: leave one"),
        ("dpo", "lora.enabled=true", "needs a separate reference model, which an adapter run does not have"),
    ],
)
def test_mutually_exclusive_settings_are_refused(
    method: str, setting: str, message: str, tmp_path: Path
) -> None:
    sets = [f"run.method={method}", setting]
    if "ref_log_probs" in setting or "lora" in setting:
        sets.append("training.sync_ref_model=true")
    if "loss_type" in setting:
        sets.append("training.use_weighting=true")
    assert message in refusal(tmp_path, sets=sets)


def test_settings_that_fmstune_controls_are_never_offered() -> None:
    for method in METHODS:
        assert not {f"training.{name}" for name in OWNED_TRAINING} & set(known_keys(method))


def test_explain_knows_the_settings_of_the_method(tmp_path: Path) -> None:
    config = load_text(tmp_path, DEMO_FILE, ["run.method=dpo", "training.beta=0.3"])
    assert explain(config, "training.beta").value == 0.3
    assert "training.beta" in [each.key for each in chosen(config)]
    with pytest.raises(ConfigError, match="packing is a setting of sft; this run's method is dpo"):
        explain(config, "training.packing")
