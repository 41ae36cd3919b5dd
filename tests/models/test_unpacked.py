"""A model in FP8 that is unpacked for a CPU is saved with the weights that it has, and says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fmstune import demo
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ModelError
from fmstune.models.load import load_model
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from tests.support.models import logits
from tests.support.short_runs import train

pytestmark = [
    pytest.mark.usefixtures("small_demo"),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="on a GPU, FP8 may stay as it is"),
]
_BLOCK, _LARGEST = 16, 448


@pytest.fixture(autouse=True)
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A model in `model`, whose MLPs are in blocks of FP8 as DeepSeek publishes them; returns its weights."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo.model_dir(), "model")
    built = demo.build_model(3)
    built.save_pretrained("model")
    written, exact = {}, {}
    for name, weight in load_file("model/model.safetensors").items():
        written[name] = exact[name] = weight
        if ".mlp." in name:
            rows, columns = weight.shape
            blocks = weight.reshape(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
            scale = blocks.abs().amax((1, 3), keepdim=True) / _LARGEST
            eight = (blocks / scale).to(torch.float8_e4m3fn)
            written[name] = eight.reshape(rows, columns)
            written[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
            exact[name] = (eight.float() * scale).reshape(rows, columns)
    save_file(written, "model/model.safetensors", {"format": "pt"})
    quantize("fp8", weight_block_size=[_BLOCK] * 2, modules_to_not_convert=["self_attn", "lm_head"])
    return exact


def quantize(method: str, **settings: object) -> None:
    file = Path("model/config.json")
    held = json.loads(file.read_text()) | {"quantization_config": {"quant_method": method, **settings}}
    file.write_text(json.dumps(held))


def expected(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    model = demo.build_model(3)
    model.load_state_dict(weights, strict=False)
    return logits(model)


@pytest.mark.parametrize("sets", [[], ["lora.enabled=true"]])
def test_it_is_trained_and_saved_without_quantization(
    packed: dict[str, torch.Tensor], sets: list[str]
) -> None:
    shown = train(Path("run"), *sets, "training.learning_rate=1e-12", model="model")
    assert "the weights of 'model' are quantized (fp8) and were unpacked; a model that is trained or" in shown
    folder = Path("run")
    if sets:
        folder = Path("merged")
        merge(locate("run"), folder, dtype="auto", base=None, trust_remote_code=False)
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.float32}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    saved = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert torch.allclose(saved, expected(packed), atol=1e-4)


def test_a_method_that_transformers_does_not_know_is_refused() -> None:
    quantize("unheard-of")
    with pytest.raises(
        ModelError, match=r"quantized with unheard-of, which transformers [\d.]+ does not know"
    ):
        load_model(ModelConfig(path="model"), lora=True, seed=0)
