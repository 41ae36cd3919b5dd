"""The loss equals that of the model's own `forward`, computed in the cheapest way that the model allows."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PreTrainedModel,
    Qwen2Config,
    RecurrentGemmaConfig,
)
from transformers.integrations import deepspeed
from trl.trainer.utils import add_fused_lm_head

from fmstune import demo
from fmstune.training.speed.lm_head import fit_lm_head

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "demo": None,
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=False, initializer_range=0.3),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, embd_pdrop=0.0,
                       resid_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2),
}  # fmt: skip
SCALED = {
    "granite": GraniteConfig(**SMALL, logits_scaling=4.0),
    "gemma2": Gemma2Config(**SMALL, final_logit_softcapping=5.0),
}


def build(config: Any) -> PreTrainedModel:
    if config is None:
        return demo.build_model(1)
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Three rows, right-padded, with untrained prompts; one has no trained token."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, model.config.vocab_size, (3, 11), generator=generator)
    attention = torch.ones_like(ids)
    attention[1, 7:] = 0
    labels = ids.masked_fill(attention == 0, -100)
    labels[0, :4] = -100
    labels[1, 2:4] = -100
    labels[2] = -100
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def both(config: Any, *, lora: bool = False) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same model with TRL's head and with the direct one."""
    by_trl = build(config)
    direct = copy.deepcopy(by_trl)
    found: list[torch.nn.Module] = []
    for model in (by_trl, direct):
        add_fused_lm_head(model, outputs=OUTPUTS)
        if not lora:
            found.append(model)
            continue
        torch.manual_seed(3)
        settings = peft.LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        found.append(peft.get_peft_model(model, settings))
    assert fit_lm_head(direct, direct=True) == "direct"
    return found[0], found[1]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_outputs(one: Any, other: Any) -> None:
    for name in ("loss", *OUTPUTS):
        torch.testing.assert_close(
            getattr(other, name), getattr(one, name), rtol=1e-4, atol=1e-5, check_dtype=False
        )
    assert torch.equal(one.label_mask, other.label_mask)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("items", [None, 40])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_equal_those_of_trl(name: str, items: int | None, lora: bool) -> None:
    models = both(CONFIGS[name], lora=lora)
    results = []
    for model in models:
        model.train()
        output = model(**batch(model), fused_lm_head=True, num_items_in_batch=items)
        output.loss.backward()
        results.append(output)
    assert_equal_outputs(*results)
    expected, found = (gradients(model) for model in models)
    assert expected.keys() == found.keys()
    assert expected
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_equals_the_cross_entropy_of_the_plain_model(name: str) -> None:
    plain = build(CONFIGS[name])
    _, direct = both(CONFIGS[name])
    expected = plain.eval()(**batch(plain)).loss
    torch.testing.assert_close(
        direct.eval()(**batch(plain), fused_lm_head=True).loss, expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_evals_give_the_same_loss(name: str) -> None:
    models = both(CONFIGS[name])
    with torch.no_grad():
        assert_equal_outputs(*(model.eval()(**batch(model), fused_lm_head=True) for model in models))


def test_a_batch_without_trained_tokens_has_a_loss_of_zero_and_gradients() -> None:
    _, direct = both(None)
    inputs = batch(direct)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    output = direct(**inputs, fused_lm_head=True)
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(direct).values())


def test_under_autocast_the_loss_is_within_bfloat16_precision() -> None:
    models = both(None)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [model(**batch(model), fused_lm_head=True).loss.float() for model in models]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-2)


def test_already_shifted_labels_are_left_to_trl() -> None:
    by_trl, direct = both(None)
    inputs = batch(direct)
    labels = inputs.pop("labels")
    inputs["shift_labels"] = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert_equal_outputs(*(model(**inputs, fused_lm_head=True) for model in (by_trl, direct)))


def test_without_the_fused_head_the_model_is_the_plain_one() -> None:
    plain = build(None)
    _, direct = both(None)
    inputs = batch(plain)
    expected, found = (model(**inputs) for model in (plain, direct))
    assert torch.equal(expected.logits, found.logits)
    assert torch.equal(expected.loss, found.loss)
    inputs.pop("labels")
    assert torch.equal(
        plain.generate(**inputs, max_new_tokens=4, do_sample=False),
        direct.generate(**inputs, max_new_tokens=4, do_sample=False),
    )


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("direct", [True, False])
def test_scales_and_caps_that_trl_supports_are_left_to_it(name: str, direct: bool) -> None:
    model = build(SCALED[name])
    add_fused_lm_head(model, outputs=OUTPUTS)
    before = model.forward
    assert fit_lm_head(model, direct=direct) == "tiled"
    assert model.forward == before


class Capped(LlamaForCausalLM):
    """Changes its logits in a way that no config field reveals."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("kind", ["recurrent_gemma", "capped"])
def test_a_model_whose_loss_trl_computes_wrongly_uses_its_own(kind: str, direct: bool) -> None:
    torch.manual_seed(1)
    if kind == "capped":
        model = Capped(LlamaConfig(**SMALL, initializer_range=1.0))
    else:
        config = RecurrentGemmaConfig(**SMALL, lru_width=32, logits_soft_cap=5.0, w_init_variance_scale=50.0)
        model = AutoModelForCausalLM.from_config(config)
    inputs = batch(model)
    expected = cross_entropy(model.eval()(**inputs, use_cache=False).logits, inputs["labels"])
    add_fused_lm_head(model, outputs=OUTPUTS)
    assert fit_lm_head(model, direct=direct) == "own"
    output = model(**inputs, fused_lm_head=True)
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    model.train()(**inputs, fused_lm_head=True).loss.backward()
    assert any(gradient.any() for gradient in gradients(model).values())


def test_mixture_of_experts_models_use_the_direct_head_until_their_own_loss_is_requested() -> None:
    model = build(MixtralConfig(**SMALL, num_local_experts=2))
    expected = model.eval()(**batch(model)).loss
    add_fused_lm_head(model, outputs=OUTPUTS)
    assert fit_lm_head(model, direct=True) == "direct"
    output = model(**batch(model), fused_lm_head=True)
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    assert output.aux_loss is None
    assert model(**batch(model), fused_lm_head=True, output_router_logits=True).aux_loss > 0


@pytest.mark.parametrize(
    ("kind", "head"), [("cap", "own"), ("known", "tiled"), ("none", "tiled"), ("inner", "own")]
)
def test_a_model_with_sharded_weights_is_scored_by_its_own_logits_if_it_may_cap_them(
    kind: str, head: str
) -> None:
    config: Any = LlamaConfig(**SMALL)
    if kind == "cap":
        config = RecurrentGemmaConfig(**SMALL, lru_width=32, logits_soft_cap=5.0)
    elif kind == "inner":
        config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
    elif kind == "known":
        config = Gemma2Config(**SMALL, final_logit_softcapping=5.0)
    with torch.device("meta"):  # as ZeRO-3 shards them
        model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model, outputs=OUTPUTS)
    assert fit_lm_head(model, direct=False) == head


def test_weights_that_deepspeed_will_partition_are_whole_while_they_are_tested() -> None:
    """Stage 3 is configured before it partitions anything."""
    model = build(None)
    add_fused_lm_head(model, outputs=OUTPUTS)

    class Configured:  # the real class needs DeepSpeed, and SimpleNamespace allows no weak reference
        def is_zero3(self) -> bool:
            return True

    configured = Configured()
    deepspeed.set_hf_deepspeed_config(configured)
    try:
        assert fit_lm_head(model, direct=False) == "tiled"
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_probing_changes_neither_weights_nor_random_numbers_nor_the_mode() -> None:
    model = build(None).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    add_fused_lm_head(model, outputs=OUTPUTS)
    fit_lm_head(model, direct=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training


def test_a_head_with_an_adapter_is_not_scored_without_it() -> None:
    model = build(CONFIGS["qwen2"])
    add_fused_lm_head(model, outputs=OUTPUTS)
    settings = peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    inputs = batch(model)
    expected = cross_entropy(adapted.eval()(**inputs, use_cache=False).logits, inputs["labels"])
    assert fit_lm_head(model, direct=True) == "own"
    torch.testing.assert_close(adapted(**inputs, fused_lm_head=True).loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("tied", "named"), [(False, "lm_head"), (True, "lm_head"), (True, "embed_tokens")])
def test_a_head_that_is_trained_whole_beside_an_adapter_is_scored_in_the_short_way(
    tied: bool, named: str, direct: bool
) -> None:
    torch.manual_seed(5)
    model = build(Qwen2Config(**SMALL, tie_word_embeddings=tied, initializer_range=0.3))
    add_fused_lm_head(model, outputs=OUTPUTS)
    inputs = batch(model)
    before = model.eval()(**inputs, fused_lm_head=True).loss.detach()
    settings = peft.LoraConfig(
        target_modules=["q_proj"], modules_to_save=[named], ensure_weight_tying=tied, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, settings)
    assert fit_lm_head(model, direct=direct) == ("direct" if direct else "tiled")
    with torch.no_grad():
        adapted.get_output_embeddings().weight.add_(
            0.5 * torch.randn_like(adapted.get_output_embeddings().weight)
        )
    expected = cross_entropy(adapted.eval()(**inputs, use_cache=False).logits, inputs["labels"])
    loss = adapted(**inputs, fused_lm_head=True).loss
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert adapted.get_output_embeddings().weight.grad.abs().sum() > 0
    assert not torch.isclose(loss, before)
    with adapted.disable_adapter():  # as the reference of dpo
        torch.testing.assert_close(adapted(**inputs, fused_lm_head=True).loss, before)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over all labelled tokens of a batch."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
