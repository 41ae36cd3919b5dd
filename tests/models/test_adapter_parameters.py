"""An adapter on parameters that no module is made of, such as the experts of a mixture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fmstune.errors import ConfigError
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from tests.support.architectures import save_tiny
from tests.support.models import logits
from tests.support.short_runs import train

EXPERTS = '["experts.gate_up_proj", "experts.down_proj"]'
ON_EXPERTS = ("lora.enabled=true", "lora.r=4", f"lora.target_parameters={EXPERTS}")
pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("kind", "modules"), [("gpt_oss", "all-linear"), ("gpt_oss", []), ("qwen3_moe", ["q_proj"])]
)
def test_it_is_trained_loaded_by_plain_peft_resumed_and_merged(kind: str, modules: str | list[str]) -> None:
    save_tiny(kind, Path("base"))
    sets = (*ON_EXPERTS, f"lora.target_modules={json.dumps(modules)}", "training.save_steps=2")
    said = train(Path("run"), *sets, "training.save_strategy=steps", model="./base")
    assert "experts.down_proj, experts.gate_up_proj" in said
    assert "does not reach" not in said
    learnt = load_file("run/adapter_model.safetensors")
    assert all(value.abs().max() > 0 for value in learnt.values())
    base = AutoModelForCausalLM.from_pretrained("./base", dtype=torch.float32)
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, "run"))
    assert (adapted - before).abs().max() > 1e-4
    merge(locate("run"), Path("merged"), dtype="auto", base=None, trust_remote_code=False)
    merged = AutoModelForCausalLM.from_pretrained("./merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-5)
    shutil.copytree("run/checkpoint-2", "parts/checkpoint-2")
    train(Path("again"), *sets, "training.save_strategy=steps", model="./base", resume="parts/checkpoint-2")
    again = load_file("again/adapter_model.safetensors")
    assert again.keys() == learnt.keys()
    assert all(torch.equal(again[name], learnt[name]) for name in learnt)


def test_a_run_can_start_from_it() -> None:
    save_tiny("gpt_oss", Path("base"))
    train(Path("first"), *ON_EXPERTS, model="./base")
    said = train(Path("second"), model="./first")
    assert "experts.down_proj, experts.gate_up_proj" in said
    settings = json.loads(Path("second/adapter_config.json").read_text())
    assert sorted(settings["target_parameters"]) == sorted(json.loads(EXPERTS))
    first, second = (load_file(f"{run}/adapter_model.safetensors") for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert not torch.equal(
        *(each["base_model.model.model.layers.0.mlp.experts.lora_B.weight"] for each in (first, second))
    )


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (('lora.target_parameters=["experts.gateup_proj"]',), "Did you mean experts.gate_up_proj?"),
        (('lora.target_parameters=["q_proj.weight"]',), "name that in lora.target_modules"),
        (('lora.target_parameters=["experts.down_proj_bias"]',), 'lora.bias = "all" trains biases'),
        (('lora.target_parameters=["norm.weight"]',), "lora.modules_to_save trains its module whole"),
        ((f"lora.target_parameters={EXPERTS}", 'lora.modules_to_save=["experts"]'), "leave it out, or adapt"),
        ((f"lora.target_parameters={EXPERTS}", "lora.dropout=0.1"), "lora.dropout is impossible"),
        ((f"lora.target_parameters={EXPERTS}", "lora.dora=true"), "lora.dora is impossible"),
    ],
)
def test_what_is_impossible_is_refused(sets: tuple[str, ...], message: str) -> None:
    save_tiny("gpt_oss", Path("base"))
    with pytest.raises(ConfigError, match=message):
        train(Path("run"), "lora.enabled=true", *sets, model="./base")


def test_all_linear_names_the_parameters_that_it_does_not_reach() -> None:
    save_tiny("gpt_oss", Path("base"))
    said = train(Path("run"), "lora.enabled=true", model="./base")
    assert 'set lora.target_parameters = ["experts.down_proj", "experts.gate_up_proj"]' in " ".join(
        said.split()
    )
