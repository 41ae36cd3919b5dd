"""Named evaluation sets: each has the metrics that it has alone, and all rows those of one set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.delivery.journal.reader import JournalReader
from tests.support.commands import fmstune
from tests.support.end_to_end import journal_points
from tests.support.journals import journal_path
from tests.support.loading import refusal
from tests.support.preferred import build, pairs, write
from tests.support.ranks import run_ranks
from tests.support.tracked import rewrite_as_interrupted

pytestmark = pytest.mark.usefixtures("small_demo")
METHODS = ("sft", "dpo", "kto", "reward", "orpo")
ROWS = 13
_NOT_OF_ROWS = ("time", "per_second", "num_tokens", "batch_mean", "epoch", "step")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs and chats with answers of different lengths, also in files of ranges of rows."""
    folder = tmp_path_factory.mktemp("sets")
    rows = pairs(ROWS)
    for at, row in enumerate(rows):
        row["chosen"][0]["content"] += " And so on." * (at % 5)
        if at % 3 == 0:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    chats = [{"messages": [*row["prompt"], *row["chosen"]]} for row in rows]
    for name, found in (("pairs", rows), ("chats", chats)):
        write(str(folder / f"{name}.jsonl"), found)
        for begin in range(ROWS):
            for end in range(begin + 1, ROWS + 1):
                write(str(folder / f"{name}-{begin}-{end}.jsonl"), found[begin:end])
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def source(method: str, begin: int, end: int, name: str | None = None) -> str:
    file = f"{'chats' if method == 'sft' else 'pairs'}-{begin}-{end}.jsonl"
    return json.dumps({"path": file} | ({} if name is None else {"name": name})).replace('": ', '" = ')


def logged(method: str, size: int, sources: list[str], *more: str, compute: Any = None) -> dict[str, float]:
    """The metrics of an evaluation, by a model that differs from its reference."""
    sets = [f"data.eval=[{', '.join(sources)}]", f"training.per_device_eval_batch_size={size}", *more]
    if method == "kto":  # its usual loss compares a row with the others of its batch
        sets.append("training.loss_type=apo_zero_unpaired")
    trainer = build(method, *sets, data=f"{'chats' if method == 'sft' else 'pairs'}.jsonl").trainer
    trainer.compute_metrics = compute  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    trainer.evaluate()  # type: ignore[attr-defined]
    return {
        name.removeprefix("eval_"): value
        for name, value in trainer.state.log_history[-1].items()
        if not any(each in name for each in _NOT_OF_ROWS)
    }


def require_equal(method: str, size: int, ends: list[int], *more: str, compute: Any = None) -> None:
    """Compare the metrics of sets with those of each alone, and of all their rows in one set."""
    ranges = {f"set-{end}": (begin, end) for begin, end in zip([0, *ends], ends, strict=False)}
    sets = [source(method, *rows, name) for name, rows in ranges.items()]
    found = logged(method, size, sets, *more, compute=compute)
    together = logged(method, size, [source(method, 0, ends[-1])], *more, compute=compute)
    assert {name: found.pop(name) for name in together} == pytest.approx(together, rel=1e-4, abs=1e-6)
    for name, rows in ranges.items():
        alone = logged(method, size, [source(method, *rows)], *more, compute=compute)
        own = {each: found.pop(f"{name}_{each}") for each in alone}
        assert own == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert not found


ENDS = st.lists(st.integers(1, ROWS), min_size=1, max_size=3, unique=True).map(sorted)


@settings(max_examples=12)
@given(method=st.sampled_from(METHODS), size=st.sampled_from([1, 2, 3, 5, 64]), ends=ENDS)
def test_each_set_has_the_metrics_that_it_has_alone_and_all_rows_those_of_one_set(
    method: str, size: int, ends: list[int]
) -> None:
    require_equal(method, size, ends)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("sft", ("training.packing=true", "training.max_length=128")),
        ("sft", ("training.loss_type=dft",)),
        ("sft", ("training.dataloader_num_workers=1", "training.dataloader_persistent_workers=true")),
        ("sft", ("training.train_sampling_strategy=group_by_length",)),
        ("dpo", ("training.loss_type=['sft', 'ipo']",)),
        ("dpo", ("training.precompute_ref_log_probs=true",)),
    ],
)
def test_so_it_is_with_settings_that_divide_rows_otherwise(method: str, more: tuple[str, ...]) -> None:
    require_equal(method, 3, [4, 6, 13], *more)


def hits(given: Any) -> dict[str, float]:
    """The number of rows and of right tokens, which need rows of all sets to be padded to one length."""
    labels = given.label_ids[:, 1:]
    right = (given.predictions.argmax(-1)[:, :-1] == labels) & (labels != -100)
    return {"rows": len(labels), "right": np.float64(right.sum()), "tokens": int((labels != -100).sum())}


@pytest.mark.parametrize("concatenated", [True, False])
def test_computed_metrics_are_those_of_each_set_and_of_all_rows(concatenated: bool) -> None:
    def of_batches(given: Any) -> dict[str, float]:
        return {"rows": sum(map(len, given.predictions))}

    more = () if concatenated else ("training.eval_do_concat_batches=false",)
    require_equal("sft", 3, [4, 13], *more, compute=hits if concatenated else of_batches)


SETS = """
[[data.eval]]
name = "short"
path = "chats-0-4.jsonl"

[[data.eval]]
name = "long"
path = "chats-4-13.jsonl"
"""


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> Path:
    """A configuration with two sets."""
    file = tmp_path / "sets.toml"
    text = '[model]\npath = "demo"\n[data]\ntrain = "chats.jsonl"\n[training]\nlogging_steps = 2\n' + SETS
    file.write_text(text.replace('"chats', f'"{folder}/chats'))
    return file


def test_a_run_tracks_shows_and_chooses_by_the_metrics_of_sets(tmp_path: Path, config: Path) -> None:
    flags = ["--max-steps", "4", "--set", "training.eval_strategy=steps", "--set", "training.eval_steps=2"]
    flags += ["--set", "run.early_stopping_patience=3", "--set", "samples.rows=3"]
    flags += ["--set", "training.metric_for_best_model=eval/long_loss"]
    found = fmstune("train", "sets.toml", "--output-dir", "run", *flags, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    points = journal_points(tmp_path / "run")
    for step in (2, 4):
        losses = [points["eval", name, step] for name in ("loss", "short_loss", "long_loss")]
        assert min(losses[1:]) < losses[0] < max(losses[1:])
    assert "eval 13 rows: short 4, long 9" in found.stderr
    shown = next(line for line in found.stderr.splitlines() if line.startswith("eval") and "4/4" in line)
    assert "short_loss" in shown
    assert "eval long_loss" in next(line for line in found.stderr.splitlines() if line.startswith("best"))
    table = next(event for event in JournalReader(journal_path(tmp_path / "run")) if event.kind == "table")
    assert [row["set"] for row in table.rows] == ["short", "long", "short"]


def test_two_processes_have_the_metrics_of_one(tmp_path: Path, config: Path) -> None:
    flags = ["train", "sets.toml", "--max-steps", "2", "--set", "training.per_device_eval_batch_size=2"]
    batch = "training.per_device_train_batch_size"
    one = fmstune(*flags, "--set", f"{batch}=4", "--output-dir", "one", cwd=tmp_path)
    two = run_ranks(2, *flags, "--set", f"{batch}=2", "--output-dir", "two", cwd=tmp_path)
    assert [each.returncode for each in (one, *two)] == [0, 0, 0], one.stderr + two[0].stderr
    found, expected = (
        {
            point: value
            for point, value in journal_points(tmp_path / run).items()
            if "loss" in point[1] and "batch_mean" not in point[1]
        }
        for run in ("two", "one")
    )
    assert found == pytest.approx(expected, rel=1e-4)
    assert {"loss", "short_loss", "long_loss"} <= {name for _, name, _ in expected}


def test_a_resumed_run_says_that_its_sets_have_changed(tmp_path: Path, config: Path) -> None:
    flags = ["train", "sets.toml", "--output-dir", "run", "--set", "training.save_steps=2", "--resume"]
    flags += ["--set", "training.load_best_model_at_end=true"]
    assert fmstune(*flags, "--max-steps", "2", cwd=tmp_path).returncode == 0
    rewrite_as_interrupted(tmp_path / "run")
    config.write_text(config.read_text().replace('"short"', '"other"'))
    found = fmstune(*flags, "--max-steps", "4", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "to evaluate on (in other sets)" in found.stderr
    assert "the best loss until now is that of the earlier evaluation data" in found.stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('[[data.eval]]\npath="demo"\nname="a"\n[[data.eval]]\npath="demo"', "data.eval[2] has no name"),
        ('[[data.eval]]\npath="demo"\nname="a b"', "the name 'a b' is not one for metrics"),
        ('[data.eval]\nmath="demo"\nchat="demo"', "use a table [[data.eval]] for each"),
        ('[[data.eval]]\npath="demo"\nname="a"\n[training]\nbatch_eval_metrics=true', "batch_eval_metrics"),
    ],
)
def test_names_that_cannot_be_used_are_refused(tmp_path: Path, written: str, said: str) -> None:
    assert said in refusal(tmp_path, f'[model]\npath = "demo"\n[[data.train]]\npath = "demo"\n{written}')


def test_rows_to_train_on_take_no_name(tmp_path: Path) -> None:
    text = '[model]\npath="demo"\n[[data.train]]\npath="demo"\nname="a"'
    assert "only evaluation data takes a name" in refusal(tmp_path, text)


def test_a_set_of_which_nothing_is_left_is_an_error(tmp_path: Path, config: Path) -> None:
    write(str(tmp_path / "empty.jsonl"), [{"prompt": "word " * 200, "completion": "x"}])
    config.write_text(config.read_text() + f'[[data.eval]]\nname="none"\npath="{tmp_path}/empty.jsonl"\n')
    found = fmstune("train", "sets.toml", "--set", "training.max_length=64", cwd=tmp_path)
    assert found.returncode == 2
    assert "empty.jsonl: of its 1 row, none has a token to train on" in found.stderr
