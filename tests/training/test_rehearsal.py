"""A rehearsal detects what would fail later, and the run is bitwise equal to one without it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import pytest
import torch

from fmstune.data.tokens.lengths import longest_rows
from fmstune.training.rehearsal.rehearsal import duration
from fmstune.training.rehearsal.trial_step import remove_leftovers, state_restored
from tests.support.architectures import save_tiny
from tests.support.preferred import build, pairs, write
from tests.support.ranks import run_ranks
from tests.support.tuned import tune, weights

pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "sets",
    [
        (),
        # Dropout draws random numbers at every step.
        ("lora.enabled=true", "lora.dropout=0.3", "training.gradient_accumulation_steps=2"),
        ("training.activation_checkpointing=true", "training.bf16=true"),
        ("training.packing=true",),
        ("run.method=dpo", "training.gradient_accumulation_steps=2"),
        ("run.method=kto", "lora.enabled=true", "lora.dropout=0.3"),
        ("run.method=reward",),
    ],
    ids=["full", "adapter with dropout", "checkpointing and bf16", "packing", "dpo", "kto", "reward"],
)
def test_the_weights_are_bitwise_those_of_a_run_without_rehearsal(sets: tuple[str, ...]) -> None:
    tune("without", "run.rehearse=never", *sets)
    shown = tune("with", "run.rehearse=always", *sets)
    assert "rehearse the longest batch, an evaluation and a checkpoint in" in shown
    assert "the run will take about" in shown
    assert weights("with") == weights("without")
    assert {path.name for path in Path("with").iterdir()} == {path.name for path in Path("without").iterdir()}


@pytest.mark.parametrize("setting", ["run.rehearse=always", "run.auto_batch=true"])
def test_the_first_batch_of_a_mixture_of_experts_is_tried_with_the_loss_that_balances_them(
    setting: str,
) -> None:
    save_tiny("mixtral", Path("model"))
    given = ("model.path=model", "data.train=demo")
    tune("without", *given, "run.rehearse=never")
    tune("with", *given, setting)
    assert weights("with") == weights("without")


def test_the_longest_batch_is_rehearsed() -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * length for length in (3, 9, 1, 7)]})
    assert longest_rows(rows, 2) == [1, 3]
    assert longest_rows(rows, 9) == [1, 3, 0, 2]
    answers = {"prompt_ids": [[1], [1, 1]], "chosen_ids": [[1] * 4, [1]], "rejected_ids": [[1], [1] * 5]}
    assert longest_rows(datasets.Dataset.from_dict(answers), 1) == [1]
    assert longest_rows(datasets.Dataset.from_dict(answers), 1, limit=2) == [0]


def test_short_runs_are_not_rehearsed_unless_requested() -> None:
    assert "rehearse" not in tune("out")


def test_long_runs_are_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A threshold of zero stands in for a run of hours, which no test can wait for.
    monkeypatch.setattr("fmstune.training.rehearsal.rehearsal._LONG", 0.0)
    assert "rehearse the longest batch" in tune("out")


def test_what_fails_in_an_eval_fails_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from fmstune.training.methods.sft import FineTuner

    def explode(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no evaluation today")

    monkeypatch.setattr(FineTuner, "prediction_step", explode)
    with pytest.raises(RuntimeError, match="no evaluation today"):
        tune("out", "run.rehearse=always")
    assert not list(Path("out").glob("checkpoint-*"))
    assert not list(Path("out").glob("rehearsal*"))


def test_processes_that_begin_and_end_at_different_times_rehearse(tmp_path: Path) -> None:
    write("pairs.jsonl", pairs(12))
    how = ["--method", "dpo", "--model", "demo", "--data", "pairs.jsonl", "--max-steps", "1", "--rehearse"]
    for ended in run_ranks(2, "train", *how, "--output-dir", "out", cwd=tmp_path):
        assert ended.returncode == 0, ended.stderr
    assert not list(Path("out").glob("rehearsal*"))


def test_a_process_leaves_the_rehearsal_of_another_alone() -> None:
    write("pairs.jsonl", pairs(4))
    trainer = build("dpo").trainer
    other = SimpleNamespace(output_dir=trainer.args.output_dir, process_index=1, world_size=2)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    killed = Path(trainer.args.output_dir, "rehearsal-3")
    with state_restored(trainer):
        killed.mkdir()
        remove_leftovers(cast(Any, SimpleNamespace(args=other)))
        for weight in trainer.model.parameters():
            weight.data.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    remove_leftovers(trainer)
    assert not killed.exists()


@pytest.mark.parametrize(
    ("seconds", "says"), [(5, "5 s"), (90, "1.5 min"), (11000, "3.1 h"), (2e5, "2.3 days")]
)
def test_durations_are_printed_in_common_units(seconds: float, says: str) -> None:
    assert duration(seconds) == says
