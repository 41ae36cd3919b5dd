"""A tokenizer with more tokens than the model has embeddings trains, or is refused with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune import demo
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError
from fmstune.models.load import load_model, load_tokenizer
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from tests.support.short_runs import train

pytestmark = pytest.mark.usefixtures("small_demo")

WORD = "<|lamp|>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a tokenizer that has one token more than it has embeddings."""
    directory = tmp_path_factory.mktemp("model")
    built = demo.build_model(1)
    built.save_pretrained(directory)
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    assert len(tokenizer) <= built.get_input_embeddings().weight.shape[0]
    lacking = built.get_input_embeddings().weight.shape[0] - len(tokenizer) + 1
    tokenizer.add_tokens([WORD, *(f"<|filler-{n}|>" for n in range(lacking - 1))][::-1])
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "What is it? ", "completion": f"a {WORD} of number {n}"} for n in range(12)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"data.train={path}"


def size(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def test_new_embeddings_are_initialized_with_the_mean_of_the_others_and_trained(
    tmp_path: Path, model: Path, data: str
) -> None:
    said = train(tmp_path / "run", data, "training.learning_rate=1e-12", model=str(model))
    assert (
        f"the tokenizer has 1 token more than the model has embeddings ({WORD}): it gets them, as the mea"
        in said
    )
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert size(tuned) == tuned.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "run"))
    weights = tuned.get_input_embeddings().weight
    assert torch.allclose(weights[-1], weights[:-1].mean(0), atol=1e-5)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_with_the_embeddings_is_trained_loaded_trained_further_and_merged(
    tmp_path: Path, model: Path, data: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ["lora.enabled=true", f'lora.modules_to_save=["{module}"]', data]
    said = train(tmp_path / "run", *sets, "training.save_steps=3", model=str(model))
    assert "and they are saved with the adapter" in said
    loaded = load_model(ModelConfig(path=str(tmp_path / "run")), lora=True, seed=1).model
    assert size(loaded) == len(load_tokenizer(ModelConfig(path=str(tmp_path / "run"))))
    if module == "embed_tokens":
        train(tmp_path / "run", *sets, "training.max_steps=4", model=str(model), resume="run/checkpoint-3")
        train(tmp_path / "more", data, model=str(tmp_path / "run"))
        merge(locate("more"), tmp_path / "merged", dtype="auto", base=None, trust_remote_code=False)
        assert size(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) == size(loaded)


@pytest.mark.parametrize(
    "sets",
    [["lora.enabled=true"], ["prompt_tuning.enabled=true"], ["lora.enabled=true", "data.streaming=true"]],
)
def test_an_adapter_without_the_embeddings_is_refused(
    tmp_path: Path, model: Path, data: str, sets: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r'train them whole with lora.modules_to_save = \["embed_tokens"\]'):
        train(tmp_path / "run", data, *sets, model=str(model))


def test_tokens_that_are_not_in_the_data_need_no_embedding(tmp_path: Path, model: Path) -> None:
    said = train(tmp_path / "run", "lora.enabled=true", "training.max_steps=1", model=str(model))
    assert "none of them is in the data, so the model is unchanged" in said
