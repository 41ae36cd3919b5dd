"""Padding-free batches: only if the model keeps rows apart, with the same results as with padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.models.context_length import check_context_length
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer
from fmstune.training.speed import row_attention
from fmstune.training.speed.padding_free import decide

LENGTHS = [5, 9, 30, 12, 40, 7]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
HEADS = {"num_key_value_heads": 1, "head_dim": 16}


def small(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{"vocab_size": 300, **ids, **settings})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def built(tmp_path: Path, *sets: str) -> BuiltTrainer:
    steps = ["training.max_steps=4", "training.logging_steps=1", "training.save_strategy=no"]
    return build_trainer(load(None, [], [*steps, *sets], cwd=tmp_path), Tracker(), tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", SMALL),
        ("qwen3", SMALL | HEADS),
        ("gemma3_text", SMALL | HEADS | {"sliding_window": 8}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    ],
)
def test_models_that_can_attend_row_by_row_do_so(kind: str, settings: dict[str, Any]) -> None:
    model = small(kind, **settings)
    assert decide(model, LENGTHS, 3, None, seed=1, compiled=False).avoided
    assert model.config._attn_implementation == row_attention.NAME


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}),  # its state carries over from row to row
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),  # it ignores position ids
    ],
)
def test_models_that_mix_rows_use_padding_and_refuse_padding_free(
    kind: str, settings: dict[str, Any]
) -> None:
    model = small(kind, **settings)
    before = model.config._attn_implementation
    assert not decide(model, LENGTHS, 3, None, seed=1, compiled=False).avoided
    assert model.config._attn_implementation == before
    with pytest.raises(ValueError, match="would mix the rows"):
        decide(model, LENGTHS, 3, True, seed=1, compiled=False)


def test_a_model_whose_attention_ignores_row_boundaries_is_detected() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("deaf", sdpa_attention_forward)
    AttentionMaskInterface.register("deaf", lambda *args, **kwargs: None)
    model = small("llama", **SMALL)
    model.set_attn_implementation("deaf")
    assert not decide(model, LENGTHS, 3, None, seed=1, compiled=False).avoided


def test_rows_of_equal_length_are_left_unchanged() -> None:
    model = small("llama", **SMALL)
    padding = decide(model, [16] * 20, 4, None, seed=1, compiled=False)
    assert (padding.share, padding.avoided) == (0, False)
    assert model.config._attn_implementation == "sdpa"


def test_losses_gradients_and_evals_equal_those_of_padded_batches(tmp_path: Path) -> None:
    logs = {}
    for asked in ("true", "false"):
        run = built(tmp_path, f"training.padding_free={asked}", "training.eval_steps=2")
        assert run.padding is not None
        assert run.padding.avoided == (asked == "true")
        assert 0.2 < run.padding.share < 0.5
        run.trainer.train()
        logs[asked] = [
            (entry["step"], entry.get("loss", entry.get("eval_loss")), entry.get("grad_norm", 0.0))
            for entry in run.trainer.state.log_history
            if "loss" in entry or "eval_loss" in entry
        ]
    assert len(logs["true"]) == 6
    for one, other in zip(logs["true"], logs["false"], strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_padding_free_batch_holds_only_its_rows(tmp_path: Path) -> None:
    run = built(tmp_path)
    rows = [run.trainer.train_dataset[index] for index in range(8)]
    batch = next(iter(run.trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 1
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape[1] < 8 * max(len(row["input_ids"]) for row in rows)
    padded = next(iter(run.trainer.get_eval_dataloader()))
    assert padded["input_ids"].shape[0] == 8


def test_requesting_it_where_it_is_wrong_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(demo.model_dir())
    tokenizer.save_pretrained("bloom")
    small("bloom", vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2).save_pretrained("bloom")
    with pytest.raises(ConfigError, match="would mix the rows"):
        built(tmp_path, "training.padding_free=true", 'model.path="bloom"', 'data.train="demo"')


def test_rows_beyond_a_position_table_are_an_error_and_beyond_rotary_positions_a_warning() -> None:
    table = small("gpt2", n_embd=32, n_layer=1, n_head=2, n_positions=64)
    assert check_context_length(table, 64) is None
    with pytest.raises(ConfigError, match=r"up to 65 tokens.*64 positions: set training.max_length = 64"):
        check_context_length(table, 65)
    angles = small("llama", **SMALL, max_position_embeddings=64)
    assert "set training.max_length = 64" in (check_context_length(angles, 65) or "")
