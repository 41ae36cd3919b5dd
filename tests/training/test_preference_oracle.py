"""Preference methods learn what their papers define, however they are set and their rows are batched: losses,
metrics and weights of a few updates equal those of formulas on single rows, with a plain `forward`."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.preference_oracle import trained
from tests.support.preferred import build, write

pytestmark = pytest.mark.usefixtures("small_demo")
WORDS = ("lamp", "costs", "nine", "euros", "red", "brass", "hello", "dear", "we", "have", "a", "table")
EVERY = [
    "training.optim=sgd", "training.learning_rate=0.2", "training.lr_scheduler_type=constant",
    "training.max_grad_norm=0", "training.logging_steps=1", "training.train_sampling_strategy=sequential",
    "training.save_strategy=no",
]  # fmt: skip
SMOOTH = {"exo_pair", "robust", "aot", "aot_unpaired"}
LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
WITH_DIVERGENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def some_rows(method: str, count: int, seed: int, *, one_label: bool = False) -> list[dict[str, Any]]:
    chance = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, most)))

    made: list[dict[str, Any]] = []
    few = [text(9) for _ in range(seed % 4)]  # prompts of several rows
    for at in range(count):
        if method == "kto":
            prompt = chance.choice(few) if few else text(9)
            row: dict[str, Any] = {"prompt": prompt, "completion": f" {text(12)}"}
            row["label"] = at < count // 2 or chance.random() < 0.5 if one_label else chance.random() < 0.6
        else:
            row = {"prompt": text(9), "chosen": f" {text(12)}", "rejected": f" {text(12)} {at}."}
            if method == "reward" and seed % 2:
                row["margin"] = chance.random() * 2
        made.append(row)
    return made


def compare(method: str, rows: list[dict[str, Any]], sets: list[str], updates: int = 2) -> None:
    write("rows.jsonl", rows)
    built = build(method, *EVERY, f"training.max_steps={updates}", *sets, data="rows.jsonl")
    trainer: Any = built.trainer
    own = copy.deepcopy(trainer.model)
    for part in own.modules():  # the plain forward
        part.__dict__.pop("forward", None)
    begun = {name: weight.detach().clone() for name, weight in own.named_parameters()}
    encoded = list(trainer.train_dataset)
    assert len(encoded) == len(rows)
    losses, metrics = trained(method, own.eval(), copy.deepcopy(own), encoded, trainer.args, updates)
    trainer.train()
    logs = [each for each in trainer.state.log_history if "loss" in each]
    assert [log["loss"] for log in logs] == pytest.approx(losses, rel=2e-3, abs=2e-4)
    for log, expected in zip(logs, metrics, strict=True):
        assert {name: log[name] for name in expected} == pytest.approx(expected, rel=2e-3, abs=2e-3)
    learnt = dict(trainer.model.named_parameters())
    for name, weight in own.named_parameters():
        change = (weight - begun[name]).detach()
        found = (learnt[name] - begun[name]).detach()
        assert float((found - change).norm()) <= 0.01 * float(change.norm()) + 1e-6, name


COUNTS = {
    "count": st.integers(3, 6), "seed": st.integers(0, 99), "size": st.integers(1, 3),
    "several": st.integers(1, 3), "length": st.none() | st.integers(24, 40),
}  # fmt: skip


def batches(size: int, several: int, length: int | None) -> list[str]:
    sets = [f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={several}"]
    return sets + ([] if length is None else [f"training.max_length={length}"])


def beta(data: Any) -> str:
    return f"training.beta={data.draw(st.sampled_from([0.05, 0.1, 0.5]))}"


FEW = settings(
    max_examples=10, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FEW
@given(**COUNTS, data=st.data())
def test_dpo(count: int, seed: int, size: int, several: int, length: int | None, data: Any) -> None:
    losses = data.draw(st.lists(st.sampled_from(LOSSES), min_size=1, max_size=2, unique=True))
    sets = [*batches(size, several, length), beta(data), f"training.loss_type={losses}".replace("'", '"')]
    if data.draw(st.booleans()):
        sets.append(f"training.loss_weights={[0.25, 1.5][: len(losses)]}")
    if SMOOTH & set(losses):
        sets.append("training.label_smoothing=0.1")
    if set(losses) <= WITH_DIVERGENCE and data.draw(st.booleans()):
        kind = data.draw(st.sampled_from(["forward_kl", "js_divergence", "alpha_divergence"]))
        sets.append(f"training.f_divergence_type={kind}")
    if data.draw(st.booleans()):
        sets.append("training.ld_alpha=0.5")
    if not {"aot", "aot_unpaired", "hinge", "sft"} & set(losses) and data.draw(st.booleans()):
        sets.append("training.use_weighting=true")
    how = data.draw(st.sampled_from(["copy", "moving", "precomputed"]))
    if how == "moving":
        sets += ["training.sync_ref_model=true", "training.ref_model_sync_steps=1"]
    if how == "precomputed":
        sets.append("training.precompute_ref_log_probs=true")
    if length is not None and data.draw(st.booleans()):
        sets.append("training.truncation_mode=keep_end")
    compare("dpo", some_rows("dpo", count, seed), sets)


@FEW
@given(**COUNTS, data=st.data())
def test_kto(count: int, seed: int, size: int, several: int, length: int | None, data: Any) -> None:
    sets = [*batches(size + 1, several, length), beta(data)]
    sets.append(f"training.desirable_weight={data.draw(st.sampled_from([1, 0.5, 2]))}")
    sets.append(f"training.loss_type={data.draw(st.sampled_from(['kto', 'apo_zero_unpaired']))}")
    how = data.draw(st.sampled_from(["copy", "moving", "precomputed"]))
    if how == "moving":
        sets += ["training.sync_ref_model=true", "training.ref_model_sync_steps=1"]
    if how == "precomputed":
        sets.append("training.precompute_ref_log_probs=true")
    compare("kto", some_rows("kto", count, seed, one_label=data.draw(st.booleans())), sets)


@FEW
@given(**COUNTS, data=st.data())
def test_orpo(count: int, seed: int, size: int, several: int, length: int | None, data: Any) -> None:
    compare("orpo", some_rows("orpo", count, seed), [*batches(size, several, length), beta(data)])


@FEW
@given(**COUNTS, data=st.data())
def test_reward(count: int, seed: int, size: int, several: int, length: int | None, data: Any) -> None:
    sets = batches(size, several, None)
    if data.draw(st.booleans()):
        sets.append("training.center_rewards_coefficient=0.05")
    compare("reward", some_rows("reward", count, seed), sets)
