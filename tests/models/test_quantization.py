"""QLoRA: refused early where it cannot work; if bitsandbytes is installed, it is tested on the CPU."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError
from fmstune.models.load import load_model
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from fmstune.models.quantization import quantized
from tests.support.short_runs import train


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_an_adapter_or_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--set: model.quantization = '8bit' freezes .* add --lora"):
        load(None, (), ["model.quantization=8bit"])
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r'needs bitsandbytes: pip install "fmstune\[quantization\]"'):
        load(None, (), ["model.quantization=4bit", "lora.enabled=true"])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU here")
def test_on_a_cpu_it_is_refused_before_anything_is_loaded_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = ModuleType("bitsandbytes")  # whether it is installed does not matter here
    pretended.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "bitsandbytes", pretended)
    with pytest.raises(ConfigError, match=r"--set: model.quantization = '4bit' needs a GPU"):
        train(Path("out"), "model.quantization=4bit", "lora.enabled=true")
    assert not Path("out").exists()


def test_four_bits_are_those_of_the_qlora_paper() -> None:
    settings = quantized("4bit")["quantization_config"].to_dict()
    assert settings["bnb_4bit_quant_type"] == "nf4"
    assert settings["bnb_4bit_use_double_quant"]
    assert settings["bnb_4bit_compute_dtype"] == "bfloat16"
    assert quantized("8bit")["quantization_config"].load_in_8bit


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_an_adapter_over_quantised_weights_is_trained_resumed_and_merged(
    bits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    # What really needs a GPU works on a CPU for a model this small.
    monkeypatch.setattr("fmstune.system.device.check_device", lambda config: None)
    shutil.copytree(demo.model_dir(), "base")
    # In 4 bits, bitsandbytes' CPU code requires rows of a multiple of 64, which the demo's are not.
    settings = AutoConfig.from_pretrained("base", hidden_size=128, head_dim=32)
    AutoModelForCausalLM.from_config(settings, dtype=torch.float32).save_pretrained("base")
    sets = (f"model.quantization={bits}", "lora.enabled=true", "training.save_strategy=steps")
    shown = train(Path("run"), *sets, "training.save_steps=2", model="base")
    assert "LoRA r=16 on" in shown
    held = load_model(ModelConfig(path="base", quantization=bits), lora=True, seed=0)
    assert held.identity["quantization"] == bits
    linear = held.model.model.layers[0].mlp.up_proj
    assert type(linear).__name__ == ("Linear4bit" if bits == "4bit" else "Linear8bitLt")
    assert not any(weights.requires_grad for weights in held.model.parameters())
    train(Path("second"), *sets, model="base", resume="run/checkpoint-2")
    train(Path("third"), f"model.quantization={bits}", model="run")
    merge(locate("third"), Path("merged"), dtype="auto", base=None, trust_remote_code=False)
    assert "quantization_config" not in json.loads(Path("merged/config.json").read_text())
