"""Values of `[training]` that transformers would refuse late are reported before torch is imported."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.load.load import load
from fmstune.config.schema.schedules import schedule_problems
from fmstune.config.schema.training import training_fields
from fmstune.errors import ConfigError


def refused(*sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, sets=[f"training.{each}" for each in sets])
    return str(caught.value)


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("lr_scheduler_kwargs=foo", "= 'foo' is a string; it takes a table: write {name = value}."),
        ("lr_scheduler_kwargs='[1]'", "= '[1]' is a string; it takes a table"),
        ("lr_scheduler_kwargs={num_cycle = 2}", "no argument num_cycle. Did you mean num_cycles?"),
        ("lr_scheduler_kwargs={zzz = 2}", "the schedule cosine has no argument zzz. Available: num_cycles."),
        ("lr_scheduler_kwargs='{\"zzz\": 2}'", "the schedule cosine has no argument zzz."),
        ("lr_scheduler_kwargs={num_training_steps = 2}", "has no argument num_training_steps."),
        ("lr_scheduler_type=warmup_stable_decay", "training.lr_scheduler_kwargs = {num_decay_steps = 100}."),
        ("lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs = {min_lr_rate = 0.1}."),
        ("accelerator_config=a.json", "training.accelerator_config = 'a.json': there is no such file."),
        ("accelerator_config={even_batches = false}", "even_batches = false fails with several"),
        ("accelerator_config='{\"dispatch_batches\": true}'", "Leave dispatch_batches out."),
        ("optim_args=lr", "training.optim_args = 'lr' is not of the form NAME=VALUE,NAME=VALUE."),
        ("save_strategy=best", 'set training.metric_for_best_model = "loss".'),
        ("log_level=DEBUG", "Did you mean debug?"),
        *((f"save_total_limit={count}", 'or "none" to keep all checkpoints') for count in (0, -3)),
        ("dataloader_prefetch_factor=0", "is out of range; it must be at least 1."),
        ("ddp_bucket_cap_mb=0", "is out of range; it must be at least 1."),
        ("pad_to_multiple_of=0", "is out of range; it must be at least 1."),
        ("pad_to_multiple_of=x", "= 'x' is neither a number of tokens nor auto."),
        ("router_aux_loss_coef=-1", "is out of range; it must be at least 0."),
        ("warmup_steps=1.5", "is not a number of steps: use an integer"),
        ("neftune_noise_alpha=-1", "is out of range; it must be at least 0."),
    ],
)
def test_what_transformers_would_refuse_late_is_reported_at_once(setting: str, says: str) -> None:
    message = refused(setting)
    assert message.startswith("--set: training.")
    assert says in message


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_kwargs": '{"num_cycles": 2}', "lr_scheduler_type": "cosine"},
        {"lr_scheduler_kwargs": {"min_lr": 0.1}, "lr_scheduler_type": "cosine_with_min_lr"},
        {"lr_scheduler_kwargs": {"num_decay_steps": 9}, "lr_scheduler_type": "warmup_stable_decay"},
        {"lr_scheduler_kwargs": {"factor": 0.5}, "lr_scheduler_type": "reduce_lr_on_plateau"},
        {"lr_scheduler_kwargs": {"anything": 1}, "lr_scheduler_type": "of_a_later_version"},
        {"lr_scheduler_kwargs": None},
    ],
)
def test_valid_arguments_of_a_schedule_are_accepted(settings: dict[str, Any]) -> None:
    assert list(schedule_problems(settings)) == []


def test_a_schedule_accepts_each_argument_that_transformers_accepts() -> None:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for schedule, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        takes = dict.fromkeys(set(inspect.signature(function).parameters) - given - {"kwargs"}, 1)
        settings = {"lr_scheduler_type": schedule.value, "lr_scheduler_kwargs": takes}
        assert list(schedule_problems(settings)) == []


def test_choices_that_transformers_computes_are_those_it_has() -> None:
    from torch._inductor import list_mode_options
    from transformers.training_args import trainer_log_levels

    fields = training_fields()
    assert set(fields["log_level"].choices or ()) == set(trainer_log_levels)
    assert set(fields["torch_compile_mode"].choices or ()) <= set(list_mode_options())
