"""Every causal architecture in transformers trains: a tiny random model of each has the loss of its own
`forward` at the first step, and round-trips through its directory; so does one of each kind with LoRA.

A new release of transformers adds architectures; those that cannot be built small or trained here are listed.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune import demo
from fmstune.cli.generate import generate
from fmstune.config.load.load import load
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError, ModelError
from fmstune.models.adapters import peft_config
from fmstune.trackers.base import Tracker
from fmstune.training.build import build_trainer
from fmstune.training.memory.workload import workload
from fmstune.training.trl_compat.saving import load_checkpoint, save_for_checkpoint
from tests.support.architectures import ALL, tiny_gemma3, tiny_model

NOT_BUILT = {
    "blt": "its patcher alone has 96 million weights",
    "cpmant": "its own forward changes with the padding beside a row",
    "cohere_compass_text": "its default config cannot be built",
    "dbrx": "its default config cannot be built",
    "dots3_note": "a tower of 42 layers that its config fixes",
    "gemma3n": "needs timm",
    "gemma4": "its tables of embeddings have 142 million weights",
    "gemma4_assistant": "shares the layers of another model",
    "gemma4_unified_assistant": "shares the layers of another model",
    "longcat_flash": "its default config cannot be made small",
    "emu3": "its part for pictures has 11 million weights",
    "fuyu": "its part for pictures has 16 million weights",
    "gemma3": "its part for pictures has 8 million weights",
    "gemma4_unified": "its part for pictures has 8 million weights",
    "got_ocr2": "its part for pictures has 7 million weights",
    "llama4": "its part for pictures has 12 million weights",
    "mllama": "its part for pictures has 8 million weights",
    "moss_transcribe_diarize": "its part for sounds has 4 million weights",
    "musicgen": "writes sounds",
    "musicgen_melody": "writes sounds",
    "phi4_multimodal": "its parts for pictures and sounds have 6 million weights",
    "qwen3_5": "its part for pictures has 17 million weights",
    "qwen3_5_moe": "its part for pictures has 17 million weights",
    "qwen4_exp": "its part for pictures has 17 million weights",
    "reformer": "its default config cannot be built",
    "xlm": "writes no text",
    "xmod": "asks for a language",
    "zamba": "its default config cannot be made small",
    "zamba2": "its default config cannot be made small",
}
SEE_AHEAD = dict.fromkeys(
    ["bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
     "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
     "xlm-roberta", "xlm-roberta-xl", "xlnet"],
    "attends to both sides, and is refused",
)  # fmt: skip
ROWS = [
    {"prompt": "What does the lamp cost?", "completion": "The lamp costs nine euros."},
    {
        "prompt": "Why?",
        "completion": "Because it is made of brass and of glass, which somebody has blown by hand.",
    },
    {"prompt": "Where is the chair?", "completion": "Here."},
]
"""Different lengths, so that batches are padded; few and short, because a hundred architectures are built."""
SHORTEST = 2
"""The row that shows whether weights differ."""
KINDS = tuple(kind for kind in ALL if kind not in NOT_BUILT | SEE_AHEAD)
ADAPTED = (
    "llama", "gpt2", "falcon",  # `Linear`, `Conv1D` and a custom linear layer
    "gemma2", "opt", "bart", "git",  # capped logits, tied embeddings, a decoder half, images
    "deepseek_v2", "hunyuan_v1_moe", "mixtral", "cohere2_moe", "gpt_oss", "granitemoe", "jetmoe",  # experts
    "deepseek_v4", "doge", "inkling_text", "xlstm", "modernbert-decoder",  # a loss of their own
    "mamba", "mamba2", "jamba", "kimi_linear", "lfm2_moe", "recurrent_gemma", "rwkv",  # without attention
)  # fmt: skip
"""One of each kind of layer that an adapter can wrap, with each way to compute the loss. For the others only
wrapping is specific."""


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.model_dir())


def tiny(kind: str) -> Any:
    ids = (tokenizer().pad_token_id, tokenizer().eos_token_id)
    return tiny_model(
        kind, vocab_size=len(tokenizer()), pad_token_id=ids[0], bos_token_id=ids[1], eos_token_id=ids[1]
    )


def own_loss(model: Any, rows: Any) -> float:
    """The mean over all trained tokens, computed row by row."""
    loss = tokens = 0.0
    for row in rows:
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits
        loss += float(torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    return loss / tokens


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_with_its_own_loss_and_round_trips(kind: str, tmp_path: Path) -> None:
    saved(tiny(kind), tmp_path)
    trainer = built(tmp_path, lora=False)
    expected = own_loss(trainer.model, trainer.train_dataset)
    model, row, learnt = trained(trainer, expected, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert own_loss(again, row) == pytest.approx(learnt, rel=1e-5)
    if kind not in ADAPTED:
        takes_an_adapter(model, row, learnt, tmp_path)


@pytest.mark.parametrize("kind", ADAPTED)
def test_an_adapter_trains_with_its_own_loss_and_round_trips(kind: str, tmp_path: Path) -> None:
    base = tiny(kind)
    saved(base, tmp_path)
    trainer = built(tmp_path, lora=True)
    expected = own_loss(base, trainer.train_dataset)  # a new adapter does not change the loss
    _, row, learnt = trained(trainer, expected, tmp_path / "out")
    again = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    assert own_loss(again, row) == pytest.approx(learnt, rel=1e-5)


def test_an_adapter_that_peft_would_not_load_again_is_refused(tmp_path: Path) -> None:
    saved(tiny("laguna"), tmp_path)  # PEFT 0.21 renames its shared experts at loading
    with pytest.raises(ConfigError, match=r"modules without down_proj, gate_proj, up_proj, such as "):
        built(tmp_path, lora=True)


@pytest.mark.parametrize("kind", ["llama", "gemma4_text"])
def test_its_memory_is_estimated(kind: str, tmp_path: Path) -> None:
    saved(tiny(kind), tmp_path)  # each layer of Gemma 4 has its own settings
    work = workload(built(tmp_path, lora=False))
    assert work is not None
    assert work.heads_width >= 32


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_for_texts_and_images_trains_with_its_own_loss_on_texts(lora: bool, tmp_path: Path) -> None:
    ids = {"pad_token_id": tokenizer().pad_token_id, "eos_token_id": tokenizer().eos_token_id}
    base = tiny_gemma3(vocab_size=len(tokenizer()), **ids)
    saved(base, tmp_path)
    trainer = built(tmp_path, lora=lora)
    trained(trainer, own_loss(base, trainer.train_dataset), tmp_path / "out")


def trained(trainer: Any, expected: float, out: Path) -> tuple[Any, Any, float]:
    """The saved model after a step whose loss was as expected; a row, and its loss then."""
    row = trainer.train_dataset.select([SHORTEST])
    untrained = own_loss(trainer.model, row)
    trainer.model.train()
    trainer.train()
    first = trainer.state.log_history[0]
    balancing = first.get("aux_loss", 0.0) * (trainer.router_aux_loss_coef or 0.0)
    assert first["loss"] - balancing == pytest.approx(expected, rel=1e-3)
    learnt = own_loss(trainer.model, row)
    assert learnt != untrained
    restored_by_a_checkpoint(trainer, out / "checkpoint-1")
    trainer.save_model(str(out))
    return trainer.model, row, learnt


def restored_by_a_checkpoint(trainer: Any, folder: Path) -> None:
    """A checkpoint holds every trained weight: transformers saves some under the names of published files,
    in other shapes, such as each expert of a mixture by itself."""
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    kept = {name: weight.detach().clone() for name, weight in trained.items()}
    save_for_checkpoint(trainer, folder)
    with torch.no_grad():
        for weight in trained.values():
            weight.fill_(0.5)
    load_checkpoint(trainer, str(folder))
    lost = [name for name, weight in trained.items() if not torch.equal(weight, kept[name])]
    assert not lost


def takes_an_adapter(model: Any, row: Any, before: float, place: Path) -> None:
    """A new adapter does not change the model's loss at first, and gets gradients."""
    adapted = get_peft_model(model, peft_config(config(place, lora=True), model))
    assert own_loss(adapted, row) == pytest.approx(before, rel=1e-5)
    inputs, labels = (torch.tensor([row[0][name]]) for name in ("input_ids", "labels"))
    logits = adapted.train()(input_ids=inputs, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).backward()
    reached = [weights for name, weights in adapted.named_parameters() if "lora_B" in name]
    assert any(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in reached)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_model_that_attends_to_later_tokens_is_refused(kind: str, tmp_path: Path) -> None:
    saved(tiny(kind), tmp_path)
    with pytest.raises(ModelError, match='has "is_decoder": true'):
        built(tmp_path, lora=False)
    with pytest.raises(ModelError, match='has "is_decoder": true'):
        generate(str(tmp_path), prompts=["Hi"])


def saved(model: Any, place: Path) -> None:
    model.save_pretrained(place)
    tokenizer().save_pretrained(place)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def config(place: Path, *, lora: bool) -> RunConfig:
    sets = [
        *("training.max_steps=1", "training.logging_steps=1", "training.save_strategy=no"),
        *("training.eval_strategy=no", "training.per_device_train_batch_size=4", "training.warmup_steps=0"),
        *(f'data.train="{place}/rows.jsonl"', f'model.path="{place}"', f"lora.enabled={str(lora).lower()}"),
    ]
    return load(None, [], sets, cwd=place)


def built(place: Path, *, lora: bool) -> Any:
    return build_trainer(config(place, lora=lora), Tracker(), place / "out").trainer


@pytest.mark.parametrize("kind", sorted(NOT_BUILT.keys() - {"cpmant"}))
def test_the_listed_architectures_cannot_be_built_small(kind: str) -> None:
    with pytest.raises(Exception, match=r"."):
        tiny(kind)(input_ids=torch.arange(3, 20)[None], use_cache=False)
