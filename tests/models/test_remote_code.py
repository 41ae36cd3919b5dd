"""Python code that comes with a model runs only if that was allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmstune import demo
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ModelError
from fmstune.models.load import load_model

CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineModel(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_code_of_a_model_runs_only_with_trust_remote_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    place = tmp_path / "mine"
    demo.build_model(42).save_pretrained(place)
    (place / "code.py").write_text(CODE)
    settings = json.loads((place / "config.json").read_text())
    settings |= {
        "model_type": "mine",
        "architectures": ["MineModel"],
        "auto_map": {"AutoConfig": "code.MineConfig", "AutoModelForCausalLM": "code.MineModel"},
    }
    (place / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(ModelConfig(path=str(place)), lora=False, seed=0, reward=False)
    trusted = ModelConfig(path=str(place), trust_remote_code=True)
    assert type(load_model(trusted, lora=False, seed=0, reward=False).model).__name__ == "MineModel"
