"""FSDP: its table and files are checked with the configuration, and passed on unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainingArguments

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.config.rules.parallel import fsdp_keys, fsdp_words
from fmstune.errors import ConfigError
from fmstune.training.arguments import require_layers, training_arguments
from tests.support.loading import DEMO_FILE, load_text, refusal

FSDP = "training.fsdp=true"


def test_a_table_for_fsdp_is_passed_on_unchanged(tmp_path: Path) -> None:
    text = DEMO_FILE + (
        "[training]\nfsdp = true\n[training.fsdp_config]\n"
        'transformer_layer_cls_to_wrap = ["LlamaDecoderLayer"]\nfsdp_cpu_offload = true\n'
    )
    training = load_text(tmp_path, text).training
    assert training["fsdp"] is True
    assert training["fsdp_config"] == {
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "fsdp_cpu_offload": True,
    }


def test_a_file_for_fsdp_is_relative_to_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "fsdp.json").write_text('{"version": 2}')
    config = load(None, sets=[FSDP, "training.fsdp_config=fsdp.json"], cwd=tmp_path)
    assert config.training["fsdp_config"] == "fsdp.json"


def test_transformers_reads_a_file_for_fsdp_from_there_too(tmp_path: Path) -> None:
    (tmp_path / "fsdp.json").write_text('{"version": 2, "reshard_after_forward": false}')
    config = load(None, sets=[FSDP, "training.fsdp_config=fsdp.json"], cwd=tmp_path)
    args = training_arguments(config, tmp_path / "out")
    assert args.fsdp_config["reshard_after_forward"] is False


@pytest.mark.parametrize("written", ["true", "full_shard", "full_shard auto_wrap", "shard_grad_op offload"])
def test_fsdp_is_a_boolean_or_the_old_keywords(written: str, tmp_path: Path) -> None:
    given = load(None, sets=[f"training.fsdp={written}"], cwd=tmp_path).training["fsdp"]
    assert TrainingArguments(str(tmp_path), fsdp=given).fsdp is True


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["training.fsdp=ful_shard"], "'ful_shard' is unknown; true is enough. Did you mean full_shard?"),
        (
            [FSDP, 'training.fsdp_config={state_dict_type="SHARDED"}'],
            "state_dict_type = 'SHARDED' is unknown. Available: FULL_STATE_DICT, SHARDED_STATE_DICT.",
        ),
        ([FSDP, "prompt_tuning.enabled=true"], "training.fsdp does not work with prompt tuning"),
        (
            [FSDP, 'training.fsdp_config={auto_wrap_policy="SIZE_BASED_WRAP"}'],
            "would shard the list of layers as one, which FSDP 2 cannot do; leave it out",
        ),
        ([FSDP, "training.optim=adafactor"], "'adafactor' does not work with training.fsdp"),
        ([FSDP, "training.fsdp_config={versoin=2}"], "no setting 'versoin'. Did you mean version?"),
        ([FSDP, "training.fsdp_config={fsdp_offload_param=true}"], "no setting 'fsdp_offload_param'."),
        ([FSDP, "training.fsdp_config=fdsp.json"], "there is no such file. Did you mean fsdp.json?"),
        ([FSDP, "training.fsdp_config=torn.json"], "torn.json:1: invalid JSON"),
        ([FSDP, "training.fsdp_config=list.json"], "list.json must contain one object"),
        ([FSDP, "training.fsdp_config=."], "cannot be read: Is a directory"),
        ([FSDP, "training.fsdp_config=wrong.json"], "no setting 'stage'"),
        (["training.fsdp_config={version=2}"], "has no effect without training.fsdp = true"),
        ([FSDP, "training.deepspeed={}", "training.deepspeed={a=1}"], "or training.deepspeed, not both"),
        (["training.deepspeed=zero3.json"], "training.deepspeed = 'zero3.json': there is no such file."),
        (["training.deepspeed=list.json"], "list.json must contain one object"),
        (
            ["training.deepspeed=kept.json"],
            "= false in kept.json would leave the run without a model: leave it out.",
        ),
    ],
)
def test_errors_are_reported_with_their_source(sets: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "fsdp.json").write_text('{"version": 2}')
    (tmp_path / "torn.json").write_text('{"version": ')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "wrong.json").write_text(json.dumps({"stage": 3}))
    gathering = {"stage3_gather_16bit_weights_on_model_save": False}
    (tmp_path / "kept.json").write_text(json.dumps({"zero_optimization": {"stage": 3, **gathering}}))
    told = refusal(tmp_path, sets=sets)
    assert told.startswith("--set: ")
    assert said in told


def test_all_settings_that_transformers_documents_are_known() -> None:
    documented = TrainingArguments.__doc__ or ""
    _, _, after = documented.partition("fsdp_config (`str` or `dict`")
    section = after.partition("> DeepSpeed")[0]
    names = {
        line.split("`")[0].strip(" -(") for line in section.splitlines() if line.strip().startswith("- ")
    }
    assert {"version", "cpu_offload", "transformer_layer_cls_to_wrap"} <= names <= fsdp_keys()
    assert {"full_shard", "auto_wrap"} <= set(fsdp_words())


def test_layers_that_the_model_does_not_have_are_named_with_those_that_it_has() -> None:
    layers = '{transformer_layer_cls_to_wrap=["LlamaDecoderLayer", "LlamaLayer"]}'
    config = load(None, sets=[FSDP, f"training.fsdp_config={layers}"])
    model = demo.build_model()
    with pytest.raises(ConfigError, match=r"= 'LlamaLayer': .* leave it out, or use LlamaDecoderLayer\.$"):
        require_layers(config, model)
    require_layers(load(None, sets=[FSDP]), model)
