"""What a model's files hold is what is trained and saved: nothing is dropped or initialised in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from fmstune import demo
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ModelError
from fmstune.models.generate import generate_texts
from fmstune.models.load import load_for_use, load_model
from fmstune.models.locate import Place, locate
from tests.support.models import logits
from tests.support.short_runs import train

pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model() -> Path:
    shutil.copytree(demo.model_dir(), "model")
    demo.build_model(3).save_pretrained("model")
    return Path("model")


def change(file: Path, **settings: Any) -> None:
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(held | settings))


def reward(path: str) -> Any:
    return load_model(ModelConfig(path=path), lora=False, seed=0, reward=True)


def test_weights_that_config_json_has_no_place_for_are_reported(model: Path) -> None:
    assert load_for_use(ModelConfig(path="model"))[0].notes == ()
    tensors = load_file(model / "model.safetensors")
    more = {f"model.layers.9.{name}.weight": torch.ones(3) for name in ("mlp.up_proj", "input_layernorm")}
    save_file(tensors | more, model / "model.safetensors", {"format": "pt"})
    said = (
        "2 tensors in the weights of 'model' are not part of the model that its config.json describes, "
        "model.layers.9.input_layernorm.weight for one; they are neither used nor saved"
    )
    assert said in train(Path("full"), model="model")
    assert said in train(Path("lora"), "lora.enabled=true", model="model")
    (note,) = load_for_use(ModelConfig(path="lora"))[0].notes
    assert said.replace("'model'", "'./model'") in note.replace("'model'", "'./model'")


def test_a_head_that_differs_from_the_embeddings_is_no_longer_called_tied(model: Path) -> None:
    """vLLM and llama.cpp go by the flag, and would leave the trained head out."""
    tensors = load_file(model / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embeddings + 1}, model / "model.safetensors", {"format": "pt"})
    assert json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    train(Path("run"), "training.learning_rate=1e-12", model="model")
    assert not json.loads(Path("run/config.json").read_text())["tie_word_embeddings"]
    with safe_open("run/model.safetensors", "pt") as weights:
        assert "lm_head.weight" in weights.keys()  # noqa: SIM118
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in ("model", "run"))
    assert torch.allclose(logits(before), logits(after), atol=1e-4)


def test_a_reward_model_without_its_head_is_refused_and_a_language_model_gets_one(model: Path) -> None:
    assert reward("model").notes == ()
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(8)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(Path("run"), "run.method=reward", "data.train=pairs.jsonl", "training.max_steps=1", model="model")
    learnt = load_file("run/model.safetensors")
    assert torch.equal(reward("run").model.score.weight, learnt["score.weight"])
    del learnt["score.weight"]
    save_file(learnt, "run/model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensor that its config.json asks for, score.weight"):
        reward("run")


@pytest.mark.parametrize(
    "published",
    [{"temperature": 0.6, "top_p": 0.9}, {"do_sample": False, "top_k": 20}, {"length_penalty": 2.0}],
)
@pytest.mark.parametrize("sets", [[], ["lora.enabled=true"]])
def test_generation_settings_that_transformers_calls_inconsistent_are_kept_and_used(
    model: Path, published: dict[str, Any], sets: list[str]
) -> None:
    """Llama 2 has a temperature without `do_sample`; a run used to end without its model."""
    (model / "generation_config.json").unlink()
    change(model / "generation_config.json", **published, eos_token_id=0)
    train(Path("run"), *sets, model="model")
    for place in ("model", "run"):
        loaded, tokenizer = load_for_use(ModelConfig(path=place))
        assert len(generate_texts(loaded.model, tokenizer, ["Hello"], 3)) == 1
    saved = json.loads(Path("run/generation_config.json").read_text())
    assert {key: saved.get(key, False) for key in published} == published
    assert saved["eos_token_id"] == [0, 2]


def test_a_model_of_another_kind_is_refused_by_its_name(model: Path) -> None:
    shutil.copytree(model, "t5")
    for file in ("config.json", "generation_config.json"):
        Path("t5", file).unlink()
    sizes = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    T5ForConditionalGeneration(T5Config(vocab_size=496, **sizes)).save_pretrained("t5")
    with pytest.raises(ModelError, match="'t5' is a T5, and not a causal language model, which predicts"):
        load_model(ModelConfig(path="t5"), lora=False, seed=0)


def test_a_language_model_without_a_class_for_rewards_is_not_called_something_else(model: Path) -> None:
    change(model / "config.json", model_type="cohere")
    with pytest.raises(ModelError, match="'model' is a Cohere, of which transformers has no reward model"):
        load_model(ModelConfig(path="model"), lora=False, seed=0, reward=True)


@pytest.mark.parametrize("folder", ["pytorch_model_fsdp_0", "global_step5"])
def test_divided_weights_are_refused_with_what_joins_them(model: Path, folder: str) -> None:
    (model / "model.safetensors").unlink()
    (model / folder).mkdir()
    with pytest.raises(ModelError, match="are divided as FSDP or DeepSpeed trained them; join them first"):
        load_model(ModelConfig(path="model"), lora=False, seed=0)


@pytest.mark.parametrize("sets", [[], ["lora.enabled=true"]])
def test_a_run_that_was_killed_while_it_saved_its_model_is_that_of_its_checkpoint(sets: list[str]) -> None:
    train(Path("run"), *sets)
    assert not locate("run").checkpoint
    (weights,) = Path("run").glob("*model.safetensors")
    whole = weights.read_bytes()
    for harm in (
        lambda: weights.write_bytes(whole[: len(whole) // 2]),
        lambda: [file.unlink() for file in Path("run").glob("tokenizer.json")],
    ):
        harm()
        assert locate("run") == Place("run/checkpoint-3", locate("run/checkpoint-3").adapter, checkpoint=True)
        weights.write_bytes(whole)


def test_integers_that_nothing_explains_are_not_taken_for_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name] = (tensors[name] * 100).to(torch.int8)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} holds integers \(I8\), but config.json has no"):
        load_model(ModelConfig(path="model"), lora=True, seed=0)


def test_parts_of_another_model_beside_a_whole_one_are_reported(model: Path) -> None:
    demo.build_model(4).save_pretrained("parts", max_shard_size="200KB")
    for file in Path("parts").glob("model*"):
        shutil.copy(file, model)
    (note,) = load_for_use(ModelConfig(path="model"))[0].notes
    assert "holds two models: model.safetensors, which is used" in note
