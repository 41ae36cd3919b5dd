"""DeepSpeed: its settings follow `[training]`; contradictions and errors are refused with their location.

DeepSpeed is not installed where these tests run: an empty package stands in for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from fmstune.config.load.load import load
from fmstune.config.rules.deepspeed import deepspeed_problems
from fmstune.config.rules.deepspeed_table import FILLED, GATHER, deepspeed_table
from fmstune.config.schema.tables import RunConfig
from tests.support.loading import refusal

ZERO2 = {"zero_optimization": {"stage": 2}}


class Filled(HfDeepSpeedConfig):  # type: ignore[misc]
    """The settings as filled by transformers' own code; only its constructor needs DeepSpeed."""

    is_auto = HfTrainerDeepSpeedConfig.is_auto
    fill_match = HfTrainerDeepSpeedConfig.fill_match
    fill_only = HfTrainerDeepSpeedConfig.fill_only
    process = HfTrainerDeepSpeedConfig.trainer_config_process

    def __init__(self, table: dict[str, Any], **training: Any) -> None:
        super().__init__(table)
        self.mismatches: list[str] = []
        self.process(SimpleNamespace(world_size=1, save_on_each_node=False, **training))


TRAINING = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0,
    "learning_rate": 0.5, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 0.25, "weight_decay": 0.125,
    "bf16": True, "fp16": False,
}  # fmt: skip
WANTED = {
    "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "train_batch_size": 8,
    "gradient_clipping": 0.0, "optimizer.params.lr": 0.5, "optimizer.params.betas": [0.8, 0.9],
    "optimizer.params.eps": 0.25, "optimizer.params.weight_decay": 0.125,
    "scheduler.params.warmup_max_lr": 0.5, "bf16.enabled": True, "fp16.enabled": False,
}  # fmt: skip
"""What DeepSpeed has to train with, by TRAINING."""
LEFT_OUT = object()


@given(
    st.fixed_dictionaries(
        {key: st.sampled_from([LEFT_OUT, None, "auto", "right", "wrong"]) for key in WANTED}
    )
)
def test_deepspeed_trains_as_training_says_or_the_run_is_refused(chosen: dict[str, Any]) -> None:
    table: dict[str, Any] = {
        **ZERO2, "bf16": {}, "fp16": {}, "optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"},
    }  # fmt: skip
    for key, kind in chosen.items():
        part = table
        *parents, name = key.split(".")
        for parent in parents:
            part = part.setdefault(parent, {})
        wrong = not WANTED[key] if isinstance(WANTED[key], bool) else [7, 7] if "betas" in key else 7
        if kind is not LEFT_OUT:
            part[name] = {"right": WANTED[key], "wrong": wrong}.get(kind, kind)
    config = RunConfig(training={**TRAINING, "deepspeed": table})
    wrong_ones = [key for key, kind in chosen.items() if kind == "wrong"]
    refused = list(deepspeed_problems(config))
    assert all(any(f"{key} = " in what for what in refused) for key in wrong_ones)
    assert len(refused) == len(wrong_ones)
    filled = Filled(deepspeed_table(table, Path()), **TRAINING, bf16_full_eval=False, fp16_full_eval=False)
    assert len(filled.mismatches) == len(wrong_ones)
    assert {key: filled.get_value(key) for key in WANTED if key not in wrong_ones} == {
        key: value for key, value in WANTED.items() if key not in wrong_ones
    }


@pytest.mark.parametrize("before", [{}, {GATHER: "auto"}, {GATHER: True}, {GATHER: None}])
@pytest.mark.parametrize("in_file", [True, False])
def test_stage_3_gathers_the_weights_when_a_model_is_saved(
    before: dict[str, Any], in_file: bool, tmp_path: Path
) -> None:
    table = {"zero_optimization": {"stage": 3, **before}}
    (tmp_path / "zero.json").write_text(json.dumps(table))
    passed = deepspeed_table("zero.json" if in_file else table, tmp_path)  # relative to `base_dir`, like data
    assert passed["zero_optimization"] == {"stage": 3, GATHER: True}


def test_precision_without_a_table_of_its_own_is_left_to_accelerate() -> None:
    # It adds `auto_cast` for fp16, which a table with only "enabled" would lack.
    assert not {"bf16", "fp16"} & deepspeed_table(ZERO2, Path()).keys()


def test_everything_that_transformers_and_accelerate_fill_in_may_be_auto() -> None:
    table: dict[str, Any] = {**ZERO2, "optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupDecayLR"}}
    for key in FILLED:
        part = table
        *parents, name = key.split(".")
        for parent in parents:
            part = part.setdefault(parent, {})
        part[name] = "auto"
    assert not list(deepspeed_problems(RunConfig(training={"deepspeed": table})))
    filled = HfDeepSpeedConfig(table)
    assert all(filled.get_value(key) == "auto" for key in FILLED)


def _zero(**given: Any) -> dict[str, Any]:
    return {"zero_optimization": given}


@pytest.mark.parametrize(
    ("table", "sets", "message"),
    [
        ({}, [], "zero_optimization is missing"),
        (
            {"zero_optimisation": {"stage": 2}}, [],
            "no setting 'zero_optimisation'. Did you mean zero_optimization?",
        ),
        ({"bf16": {}}, [], 'zero_optimization is missing: add "zero_optimization": {"stage": 2}.'),
        ({"zero_optimization": True}, [], "zero_optimization = true is not an object"),
        (_zero(), [], "zero_optimization.stage is missing: set it to 1, 2 or 3."),
        (_zero(stage=7), [], "zero_optimization.stage = 7 is not a stage of ZeRO: set it to 0, 1, 2 or 3."),
        (_zero(stage="two"), [], 'stage = "two" is not a stage of ZeRO'),
        (_zero(stage=True), [], "stage = true is not a stage of ZeRO"),
        (_zero(stage=3, **{GATHER: 0}), [], f"{GATHER} = 0 would leave the run without a model"),
        (_zero(stage=3, **{GATHER: "yes"}), [], f'{GATHER} = "yes" would leave the run without a model'),
        (_zero(stage=3, gather_16bit_weights_on_model_save=True), [], f"is called {GATHER} now: rename it."),
        ({**ZERO2, "bfloat16": {"enabled": True}}, [], "bfloat16 is called bf16 now: rename it."),
        ({**ZERO2, "gradient_cliping": 1}, [], "'gradient_cliping'. Did you mean gradient_clipping?"),
        (
            {**ZERO2, "gradient_clipping": 0.5}, [],
            'gradient_clipping = 0.5 contradicts training.max_grad_norm = 1.0: write "auto" there, or set '
            "training.max_grad_norm = 0.5.",
        ),
        (
            {**ZERO2, "optimizer": {"type": "AdamW", "params": {"weight_decays": "auto"}}}, [],
            'optimizer.params.weight_decays = "auto" is filled by nothing in [training]. Did you mean '
            "weight_decay?",
        ),
        (_zero(stage=2, allgather_bucket_size="auto"), [], 'bucket_size = "auto" is filled by nothing'),
        ({**ZERO2, "steps_per_print": "auto"}, [], 'steps_per_print = "auto" is filled by nothing'),
        ({**ZERO2, "train_batch_size": 3}, [], "train_batch_size = 3 contradicts training.per_device_train"),
        ({**ZERO2, "fp16": {"enabled": True}}, ["training.bf16=true"], "fp16.enabled = true contradicts"),
        ({**ZERO2, "fp16": {"enabled": "yes"}}, [], 'fp16.enabled = "yes" is not true, false or "auto"'),
        ({**ZERO2, "fp16": True}, [], "fp16 = true is not an object"),
        ({**ZERO2, "optimizer": {"params": {}}}, [], 'optimizer has no type: set "type" in it'),
        ({**ZERO2, "optimizer": {"type": "Adam", "params": 1}}, [], "optimizer.params = 1 is not an object"),
        (
            {**ZERO2, "optimizer": {"type": "Adam"}}, ["training.optim=sgd"],
            "optimizer would replace training.optim = 'sgd': leave one out.",
        ),
        (
            {**ZERO2, "scheduler": {"type": "WarmupLR"}}, ["training.lr_scheduler_type=linear"],
            "scheduler would replace training.lr_scheduler_type = 'linear'",
        ),
        ({**ZERO2, "scheduler": {"type": "WarmupLr"}}, [], "of DeepSpeed. Did you mean WarmupLR?"),
        (
            {**ZERO2, "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 9}}},
            ["training.warmup_steps=3"],
            "scheduler.params.warmup_num_steps = 9 contradicts training.warmup_steps = 3",
        ),
        (
            {**ZERO2, "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}},
            ["training.max_steps=-1"],
            "total_num_steps = 9 may contradict the number of steps, which depends on the data",
        ),
    ],
)  # fmt: skip
def test_errors_are_refused_with_their_key_and_a_remedy(
    table: dict[str, Any], sets: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "zero.json").write_text(json.dumps(table))
    told = refusal(tmp_path, sets=["training.deepspeed=zero.json", *sets])
    assert told.startswith("--set: training.deepspeed")
    assert message in told.replace(", as in zero.json", "").replace(" in zero.json", "")


def test_an_empty_table_is_refused_instead_of_training_without_deepspeed(tmp_path: Path) -> None:
    assert "training.deepspeed is empty and has no effect" in refusal(
        tmp_path, sets=["training.deepspeed={}"]
    )


@pytest.mark.parametrize("processes", [None, "1", "2"])
def test_the_global_batch_size_is_checked_with_the_number_of_processes(
    processes: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("WORLD_SIZE", processes)
    table = {**ZERO2, "train_batch_size": 2 * TRAINING["per_device_train_batch_size"] * 2}
    problems = list(deepspeed_problems(RunConfig(training={**TRAINING, "deepspeed": table})))
    assert len(problems) == (processes == "1")


def test_what_a_trainer_supports_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    table = {
        **_zero(stage=2, **{GATHER: False}, reduce_bucket_size="auto"),
        "_comment": "from a template", "steps_per_print": 10, "gradient_clipping": 1,
        "bf16": {"enabled": "auto"},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}},
    }  # fmt: skip
    (tmp_path / "zero.json").write_text(json.dumps(table))
    sets = ["training.deepspeed=zero.json", "training.warmup_steps=3", "training.max_grad_norm=1"]
    assert load(None, sets=sets, cwd=tmp_path).training["deepspeed"] == "zero.json"
