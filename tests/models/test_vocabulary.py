"""A tokenizer with more tokens than the model has embeddings trains, or is refused with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from fmstune import demo
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError
from fmstune.models.generate import generate_texts, rendered
from fmstune.models.load import load_for_use, load_model, load_tokenizer
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


_WHOLE = r'train them whole with lora.modules_to_save = \["embed_tokens"\]'


@pytest.mark.parametrize(
    ("sets", "remedy"),
    [
        (["lora.enabled=true"], _WHOLE),
        (["lora.enabled=true", "data.streaming=true"], _WHOLE),
        (["prompt_tuning.enabled=true"], "train all weights, without prompt_tuning"),
    ],
)
def test_an_adapter_without_the_embeddings_is_refused(
    tmp_path: Path, model: Path, data: str, sets: list[str], remedy: str
) -> None:
    with pytest.raises(ConfigError, match=remedy):
        train(tmp_path / "run", data, *sets, model=str(model))


def test_tokens_that_are_not_in_the_data_need_no_embedding(tmp_path: Path, model: Path) -> None:
    said = train(tmp_path / "run", "lora.enabled=true", "training.max_steps=1", model=str(model))
    assert "none of them is in the data, so the model is unchanged" in said


def with_new(tmp_path: Path, model: str, data: str, *sets: str, tokens: tuple[str, ...] = (WORD,)) -> str:
    return train(tmp_path / "run", data, f"model.add_tokens={json.dumps(tokens)}", *sets, model=model)


@pytest.mark.parametrize("spare", [0, 1, 40])
def test_added_tokens_are_learnt_as_one_and_saved(tmp_path: Path, data: str, spare: int) -> None:
    """Also where the model has spare embeddings, some or enough of them, as published ones often do."""
    built = demo.build_model(1)
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    built.resize_token_embeddings(len(tokenizer) + spare)
    for part in (built, tokenizer):
        part.save_pretrained(tmp_path / "base")
    old = built.get_input_embeddings().weight.detach().clone()[: len(tokenizer)]
    with_new(
        tmp_path, str(tmp_path / "base"), data, "training.learning_rate=1e-12", tokens=(WORD, "the", "<b>")
    )
    again, tuned = (each.from_pretrained(tmp_path / "run") for each in (AutoTokenizer, AutoModelForCausalLM))
    ids = again(f"a{WORD}b<b>", add_special_tokens=False)["input_ids"]
    new = [again.convert_tokens_to_ids(token) for token in (WORD, "<b>")]
    assert [number for number in ids if number in new] == new
    assert new == [len(tokenizer), len(tokenizer) + 1]
    assert size(tuned) == len(tokenizer) + max(spare, 2)
    weights = tuned.get_input_embeddings().weight
    torch.testing.assert_close(weights[: len(tokenizer)], old, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights[new], old.mean(0).expand(2, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spare", [0, 40])
def test_an_adapter_has_to_train_the_embeddings_of_added_tokens(
    tmp_path: Path, data: str, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built, tokenizer = demo.build_model(1), load_tokenizer(ModelConfig(path="demo"))
    built.resize_token_embeddings(len(tokenizer) + spare)
    for part in (built, tokenizer):
        part.save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match=r'model\.add_tokens needs new embeddings.*\["embed_tokens"\]'):
        with_new(tmp_path / "refused", str(tmp_path / "base"), data, "lora.enabled=true")
    whole = ("lora.enabled=true", 'lora.modules_to_save=["embed_tokens"]')
    with_new(tmp_path, "base", data, *whole, "training.learning_rate=0.1")
    merge(locate("run"), tmp_path / "merged", dtype="auto", base=None, trust_remote_code=False)
    merged, again = (each.from_pretrained("merged") for each in (AutoModelForCausalLM, AutoTokenizer))
    new = again.convert_tokens_to_ids(WORD)
    before = built.get_input_embeddings().weight[: len(tokenizer)].mean(0)
    assert not torch.allclose(merged.get_input_embeddings().weight[new], before, atol=1e-3)  # it has learnt


def test_a_token_that_is_added_can_end_texts(tmp_path: Path, data: str) -> None:
    with_new(tmp_path, "demo", data, f"training.eos_token={WORD}")
    assert AutoTokenizer.from_pretrained(tmp_path / "run").eos_token == WORD


def test_a_token_that_is_there_already_is_named(tmp_path: Path, data: str) -> None:
    said = with_new(tmp_path, "demo", data, tokens=("the", "<|im_end|>", WORD))
    assert "model.add_tokens: the tokenizer has 'the', '<|im_end|>' already" in said
    assert "already" not in with_new(tmp_path / "all new", "demo", data)


def test_the_name_of_a_byte_is_not_taken_for_the_token(tmp_path: Path, data: str) -> None:
    """é is the vocabulary's name for the byte E9, and two tokens of two bytes as text."""
    with pytest.raises(ConfigError, match="'é' is the name of another token"):
        with_new(tmp_path, "demo", data, tokens=("é",))


def test_a_template_by_name_ends_answers_with_its_own_token_once_that_is_added(tmp_path: Path) -> None:
    """Although the tokenizer has no special tokens but its end of text."""
    demo.build_model(1).save_pretrained(tmp_path / "base")
    words = "It is a red lamp for you and me."
    tokenizer = Tokenizer(
        WordLevel({w: n for n, w in enumerate(["</s>", "?", "<end of the demo>", *words.split()])}, "?")
    )
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path / "base")
    chat = [{"role": "user", "content": "you and me."}, {"role": "assistant", "content": words}]
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps({'messages': chat})}\n" * 8)
    with_new(
        tmp_path, str(tmp_path / "base"), f"data.train={tmp_path}/chats.jsonl", "model.chat_template=chatml",
        "training.max_steps=40", tokens=("<|im_start|>", "<|im_end|>"),
    )  # fmt: skip
    loaded, again = load_for_use(ModelConfig(path=str(tmp_path / "run")))
    assert rendered(again, chat[0]["content"]).text.startswith("<|im_start|>user\nyou and me.<|im_end|>")
    end = again.convert_tokens_to_ids("<|im_end|>")
    assert end in loaded.model.generation_config.eos_token_id
    assert "</s>" not in again.apply_chat_template(chat, tokenize=False)
    prompt = rendered(again, chat[0]["content"]).text
    assert generate_texts(loaded.model, again, [prompt], 20)[0].strip() == words


def test_an_empty_token_is_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(ConfigError, match="has an empty token"):
        with_new(tmp_path, "demo", data, tokens=(" ",))


def test_an_adapter_that_is_continued_takes_no_tokens(tmp_path: Path, data: str) -> None:
    train(tmp_path / "adapter", data, "lora.enabled=true")
    with pytest.raises(ConfigError, match="merge it first"):
        with_new(tmp_path / "more", str(tmp_path / "adapter"), data)
