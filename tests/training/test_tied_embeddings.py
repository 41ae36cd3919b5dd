"""Embeddings tied to the head learn what they learn by the model's own `forward`, with less memory moved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import profile
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from fmstune.training.speed import tied_embeddings
from fmstune.training.speed.lm_head import fit_lm_head

VOCABULARY = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2,
}  # fmt: skip
BOUND = 1e-5
"""Of the norm of each gradient: what two orders of adding the same float32 numbers may differ by."""
LORA = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)


def learnt(model: Any, **more: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of two accumulated batches, and each weight's gradient."""
    draw = torch.Generator().manual_seed(3)
    total = 0.0
    for rows in (1, 2):
        ids = torch.randint(3, VOCABULARY, (rows, 17), generator=draw)
        ids[:, 5] = ids[:, 9] = 7  # a token that comes often
        ids[0, 3] = 2  # the one of padding, which learns nothing as an input
        labels = ids.clone()
        labels[:, :4] = -100
        loss = model(input_ids=ids, labels=labels, **more).loss
        loss.backward()
        total += float(loss.detach())
    return total, {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def pair(tied: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A plain model, and the same as a trainer has it, taken for a large one."""
    monkeypatch.setattr(tied_embeddings, "_LEAST", 0)
    torch.manual_seed(1)
    plain = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    own = copy.deepcopy(plain)
    add_fused_lm_head(own)
    assert fit_lm_head(own, direct=True) == "direct"
    return plain, own


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_each_weight_learns_what_it_learns_by_the_own_forward(
    tied: bool, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, own = pair(tied, monkeypatch)
    assert own.get_input_embeddings().sparse is tied
    models: list[Any] = [plain, own]
    for at, model in enumerate(models if lora else ()):
        torch.manual_seed(2)
        models[at] = get_peft_model(model, copy.deepcopy(LORA))
    loss, wanted = learnt(models[0])
    found_loss, found = learnt(models[1], fused_lm_head=True)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert gradient.layout is torch.strided  # as optimizers and clipping take it
        assert float((gradient - wanted[name]).norm()) <= BOUND * float(wanted[name].norm()), name


def test_no_zeros_of_the_vocabularys_size_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    _, own = pair(True, monkeypatch)
    with profile(record_shapes=True) as profiled:
        learnt(own, fused_lm_head=True)
    whole = [VOCABULARY, SMALL["hidden_size"]]
    made = {
        event.name for event in profiled.events() if event.input_shapes and event.input_shapes[0] == whole
    }
    assert not made & {"aten::zero_", "aten::fill_"}


def test_small_embeddings_are_left_to_torch() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True))
    assert not tied_embeddings.look_up_sparsely(model)
    assert not model.get_input_embeddings().sparse
