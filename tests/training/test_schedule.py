"""The learning rate is followed through all steps before the first one: what fails there would fail later."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.training.arguments import training_arguments
from fmstune.training.schedule import schedule_notes

RATE = 0.01
NUMBERS = st.sampled_from([-1, 0, 1, 2, 0.1, 0.5, 100, math.inf, "a", None])
SCHEDULES: dict[str, tuple[str, ...]] = {
    "linear": (),
    "constant": (),
    "constant_with_warmup": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("power", "lr_end"),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps", "min_lr_ratio", "warmup_type"),
    "reduce_lr_on_plateau": ("factor",),
}


def arguments(kind: str, table: dict[str, Any], warmup: int) -> Any:
    return SimpleNamespace(
        lr_scheduler_type=kind, lr_scheduler_kwargs=table or None, learning_rate=RATE, warmup_steps=warmup,
        get_warmup_steps=lambda steps: warmup, deepspeed=None,
    )  # fmt: skip


def really_followed(kind: str, table: dict[str, Any], warmup: int, steps: int) -> list[float] | None:
    """The learning rate of each step of a real optimizer, or `None` if that fails or has an unusable one."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    try:
        schedule = get_scheduler(
            kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps,
            scheduler_specific_kwargs=table or None,
        )  # fmt: skip
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if kind != "reduce_lr_on_plateau":
                schedule.step()
        last = optimizer.param_groups[0]["lr"]
    except (ArithmeticError, TypeError, ValueError):
        return None
    usable = all(isinstance(each, (int, float)) and 0 <= each < math.inf for each in (*rates, last))
    return rates if usable else None


@given(data=st.data(), warmup=st.integers(0, 12), steps=st.integers(1, 10))
def test_what_a_schedule_does_is_known_before_the_first_step(
    data: st.DataObject, warmup: int, steps: int
) -> None:
    kind = data.draw(st.sampled_from(sorted(SCHEDULES)))
    table = {name: data.draw(NUMBERS) for name in SCHEDULES[kind] if data.draw(st.booleans())}
    config = load(None, [], [f"training.warmup_steps={warmup}"])
    rates = really_followed(kind, table, warmup, steps)
    try:
        notes = list(schedule_notes(config, arguments(kind, table, warmup), steps))
    except ConfigError as error:
        assert rates is None
        remedy = str(error).split(";")[-1]
        assert "training." in remedy
    else:
        assert rates is not None
        highest = max(rates)
        assert any("raises the learning rate" in note for note in notes) == (highest > RATE * 1.002)
        never = kind not in ("constant", "reduce_lr_on_plateau") and warmup >= steps
        assert any("is not less than" in note for note in notes) == (never and highest < RATE * 0.998)


def test_a_long_run_is_followed_at_its_ends_and_around_its_warmup() -> None:
    config = load(None, [], [])
    args = arguments("polynomial", {"power": "a"}, 777_777)
    with pytest.raises(
        ConfigError, match=r"fails at step 777777 of 1000000: .*change training.lr_scheduler_kw"
    ):
        list(schedule_notes(config, args, 1_000_000))
    with pytest.raises(
        ConfigError, match=r"fails at step 10 of 10: .*training.warmup_steps must be less than 10"
    ):
        list(schedule_notes(config, arguments("polynomial", {}, 10), 10))


def test_a_run_whose_learning_rate_stays_zero_reports_it() -> None:
    (note,) = schedule_notes(load(None, [], []), arguments("linear", {}, 5), 1)
    assert note == (
        "the learning rate stays 0, and nothing is learnt: training.warmup_steps = 5 is not less than the "
        "run's 1 step"
    )


@pytest.mark.parametrize(
    ("sets", "falls_with"),
    [
        ({}, "rising"),
        ({"metric_for_best_model": "loss"}, "rising"),
        ({"metric_for_best_model": "mean_token_accuracy"}, "falling"),
        ({"metric_for_best_model": "eval_entropy", "greater_is_better": "false"}, "rising"),
        ({"metric_for_best_model": "mean_token_accuracy", "mode": "min"}, "rising"),
    ],
)
@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
def test_a_metric_that_improves_does_not_reduce_the_learning_rate(
    kind: str, sets: dict[str, Any], falls_with: str, tmp_path: Path
) -> None:
    patience = {"reduce_lr_on_plateau": "patience=0", "greedy": "patience=0, smooth=false, min_lr=0"}[kind]
    mode = f', mode="{sets["mode"]}"' if "mode" in sets else ""
    given = [f"training.{name}={value}" for name, value in sets.items() if name != "mode"]
    given += [
        "training.eval_strategy=steps",
        f"training.lr_scheduler_type={kind}",
        f"training.lr_scheduler_kwargs={{{patience}{mode}}}",
    ]
    args = training_arguments(load(None, [], given), tmp_path)
    for direction, values in (("rising", (1, 2, 3, 4)), ("falling", (4, 3, 2, 1))):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
        schedule = get_scheduler(
            args.lr_scheduler_type, optimizer, scheduler_specific_kwargs=args.lr_scheduler_kwargs
        )
        for value in values:
            schedule.step(value)
        assert (optimizer.param_groups[0]["lr"] < RATE) == (direction == falls_with)
