"""Rows with which accelerate pads the last batch of several processes count once, in loss and metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, SequentialSampler
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.reward_trainer import DataCollatorForPreference as DataCollatorForReward
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fmstune.cli.main import main
from fmstune.data.tokens.table import LOSS_WEIGHTS
from fmstune.training.trainers.each_row_once import Shares, gather_own, rows_of_processes
from fmstune.training.trainers.loss_weights import WeightedCollator
from fmstune.training.trainers.row_batches import RowLengths, first_rows, row_lengths
from tests.support.aim_servers import free_port
from tests.support.end_to_end import journal_points
from tests.support.once import made_once
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("small_demo")

SETTINGS = {
    "model.path": "demo", "data.train": "train.jsonl", "data.eval": "eval.jsonl",
    "training.optim": "sgd", "training.learning_rate": 0.05, "training.lr_scheduler_type": "constant",
    "training.num_train_epochs": 2, "training.logging_steps": 1, "training.eval_strategy": "epoch",
    "training.save_strategy": "no", "tracking.trackers": "[]", "resources.interval": 0,
}  # fmt: skip
"""Not AdamW, which turns rounding errors into steps of full size."""
PACKED = {"training.packing": "true", "training.max_length": 32, "training.padding_free": "true"}
STREAMED = {"data.streaming": "true", "data.shuffle_buffer": 3, "training.max_steps": 3}
MORE = {
    "packed": PACKED,
    "dpo and sft": {"training.loss_type": '["sigmoid", "sft"]'},
    "kto precomputed": {"training.precompute_ref_log_probs": "true", "data.cache": "false"},
    "orpo streamed": STREAMED,
    "dpo streamed": STREAMED,
}
"""Further settings of a case."""
OF_A_MACHINE = ("seconds", "time", "per_second", "memory", "tokens_per", "flos", "loss_batch_mean")
"""Not metrics of the rows; `flos` also counts computations on padding."""


def written(path: Path, kind: str, numbers: range) -> None:
    words = ["red", "green", "blue", "one", "two", "three", "four", "five", "cats", "dogs", "run", "jump"]

    def text(row: int, seed: int) -> str:
        return " ".join(words[(row * 7 + i * 3 + seed) % len(words)] for i in range(2 + (row * 5 + seed) % 7))

    def answers(row: int) -> dict[str, Any]:
        if kind in ("sft", "kto"):
            return {"completion": text(row, 1), "label": row % 3 != 0}
        if kind == "even":
            return {"completion": "red cats jump"}
        return {"chosen": text(row, 1), "rejected": text(row, 2)}

    rows = [{"prompt": f"{text(row, 0)}?", **answers(row)} for row in numbers]
    if kind == "sft":
        rows = [{name: row[name] for name in ("prompt", "completion")} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


CASES = {
    "sft": ("sft", 21, 1),
    "even": ("even", 13, 2),
    "packed": ("packed", 40, 1),
    "dpo": ("dpo", 20, 1),  # no row remains for the second process
    "dpo accumulated": ("dpo", 13, 2),
    "dpo of eight": ("dpo", 8, 2),
    "dpo and sft": ("dpo", 13, 2),
    "kto": ("kto", 13, 2),
    "kto precomputed": ("kto", 13, 1),
    "reward": ("reward", 20, 1),
    "orpo": ("orpo", 20, 2),  # no row remains for the second process
    "orpo streamed": ("orpo", 13, 2),
    "dpo streamed": ("dpo", 13, 2),
}
"""The kind of rows, their number, and the number of batches per update."""
SIZES = {"dpo of eight": 3}
"""The rows in a batch of each process, if not four. The last two of these eight, both in one process, have
the weight 1 in it."""
RESUMED = ("sft", "dpo")
SAVING = {"training.save_strategy": "steps", "training.save_steps": 1}
RUNS = """\
import json, os
from transformers import TrainerCallback
from fmstune.cli.main import main
from tests.support.small_demo import smaller

class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps - 1:
            raise RuntimeError("in the middle of the last epoch")

if __name__ == "__main__":
    with open("runs.json") as file, smaller():
        for folder, port, arguments in json.load(file):
            os.environ["MASTER_PORT"] = port  # a process may still know the store of the run before
            os.chdir(folder)
            try:
                main(arguments)
            except SystemExit as end:
                print(folder, end.code)
"""


def given_to(case: str, output: str, size: int, *more: str, **sets: Any) -> list[str]:
    """The command that trains a case with batches of `size` rows per process."""
    kind, _, accumulation = CASES[case]
    sets = {
        **SETTINGS, **MORE.get(case, {}), **sets,
        "training.gradient_accumulation_steps": accumulation, "training.per_device_eval_batch_size": size,
    }  # fmt: skip
    if kind == "even":  # if all rows have equally many trained tokens, the mean of means is the same
        sets["training.average_tokens_across_devices"] = "false"
    pairs = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    method = "sft" if kind in ("packed", "even") else kind
    return ["train", "--method", method, "--output-dir", output, "--batch-size", str(size), *pairs, *more]


def trained_by_two(folder: Path) -> None:
    """Train all cases in the same two processes, each in its folder: starting takes longer than training."""
    (folder / "each_row_once_runs.py").write_text(RUNS)
    runs: list[tuple[str, str, list[str]]] = []
    expected: list[str] = []
    for case, (kind, rows, _) in CASES.items():
        place, size = folder / case, SIZES.get(case, 4)
        place.mkdir()
        form = "sft" if kind == "packed" else kind
        written(place / "train.jsonl", form, range(rows))
        written(place / "eval.jsonl", "sft" if kind == "even" else form, range(4, 4 + rows))
        more: list[str] = []
        if case in RESUMED:
            stops = SAVING | {"run.callbacks": '["each_row_once_runs:Stops"]'}
            runs.append((str(place), str(free_port()), given_to(case, "two", size, **stops)))
            expected.append(f"{place} 1")
            more = ["--resume"]
        runs.append(
            (str(place), str(free_port()), given_to(case, "two", size, *more, **(SAVING if more else {})))
        )
        expected.append(f"{place} 0")
    (folder / "runs.json").write_text(json.dumps(runs))
    for done in run_ranks(2, cwd=folder, module=str(folder / "each_row_once_runs.py")):
        ended = [line for line in done.stdout.splitlines() if line in expected]
        assert ended == expected, done.stderr
        assert done.stderr.count("in the middle of the last epoch") >= len(RESUMED), done.stderr


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_and_report_like_one_with_all_rows(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = made_once("each-row-once", trained_by_two) / case
    for split in ("train", "eval"):
        shutil.copy(place / f"{split}.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(given_to(case, "one", 2 * SIZES.get(case, 4)))
    one, two = tmp_path / "one", place / "two"
    alone, both = (load_file(run / "model.safetensors") for run in (one, two))
    for name, weight in alone.items():
        torch.testing.assert_close(weight, both[name], rtol=0, atol=1e-6)
    once, expected = figures(two), figures(one)
    if case in RESUMED:  # the metric covers the part of a run since its resume
        for kept in (once, expected):
            for key in [key for key in kept if key[1] == "train_loss"]:
                del kept[key]
    assert once == pytest.approx(expected, rel=1e-3, abs=1e-4)


def figures(run: Path) -> dict[Any, float]:
    """The tracked metrics of the rows."""
    return {
        key: value
        for key, value in journal_points(run).items()
        if key[0] in ("train", "eval") and not any(part in key[1] for part in OF_A_MACHINE)
    }


@given(st.integers(1, 40), st.integers(2, 4), st.integers(1, 5))
def test_the_last_batches_of_all_processes_contain_each_row_once(
    rows: int, processes: int, size: int
) -> None:
    batches = BatchSampler(SequentialSampler(range(rows)), size, drop_last=False)
    rest = rows % (size * processes)
    learnt: list[int] = []
    for process, own in enumerate(rows_of_processes(rest, processes, size)):
        batch = list(BatchSamplerShard(batches, processes, process))
        last = batch[-1][:own] if rest else batch[-1]
        learnt += [row for each in batch[:-1] for row in each] + last
    assert sorted(learnt) == list(range(rows))


@given(st.integers(1, 12), st.integers(2, 4), st.integers(1, 4), st.integers(1, 2))
def test_gathered_values_equal_those_of_one_process(rest: int, processes: int, size: int, each: int) -> None:
    own = rows_of_processes(min(rest, size * processes), processes, size)
    values = [torch.rand(each * max(rows, 1), dtype=torch.float64) for rows in own]
    shares = [Shares(own, process, size) for process in range(processes)]

    def gathered(of: list[torch.Tensor]) -> torch.Tensor:
        sent: list[torch.Tensor] = []

        def send(mine: torch.Tensor) -> torch.Tensor:
            sent.append(mine)
            return mine.repeat(processes)

        for figure, share in zip(of, shares, strict=True):  # each process sends its own values
            gather_own(figure, share, send)
        assert len({part.shape for part in sent}) == 1, "or the collective would hang"
        return gather_own(
            of[0], shares[0], lambda _: torch.stack(sent) if of[0].dim() == 0 else torch.cat(sent)
        )

    real = [part[: each * rows] for part, rows in zip(values, own, strict=True)]
    torch.testing.assert_close(gathered(values), torch.cat(real))
    means = [part.mean() for part in values]
    torch.testing.assert_close(gathered(means).mean(), torch.cat(real).mean())
    weighted = [mean * share.weight for mean, share in zip(means, shares, strict=True)]
    torch.testing.assert_close(torch.stack(weighted).mean(), torch.cat(real).mean(), msg="as DDP averages")
    before = [share.with_full(2) for share in shares]
    assert before[0].own == tuple(rows + 2 * size for rows in own)
    sums = [part.sum() for part in values]
    torch.testing.assert_close(float(gathered(sums).sum()), float(torch.cat(real).sum()))


COLLATORS = {
    "sft": DataCollatorForLanguageModeling(pad_token_id=0),
    "flat": WeightedCollator(pad_token_id=0, padding_free=True),
    "dpo": DataCollatorForPreference(pad_token_id=0),
    "kto": DataCollatorForUnpairedPreference(pad_token_id=0),
    "reward": DataCollatorForReward(pad_token_id=0),
}


@given(st.sampled_from(sorted(COLLATORS)), st.lists(st.integers(2, 6), min_size=1, max_size=5), st.data())
def test_the_first_rows_of_a_batch_equal_a_batch_of_the_first_rows(
    kind: str, lengths: list[int], data: st.DataObject
) -> None:
    def row(number: int, length: int) -> dict[str, Any]:
        ids = [10 * number + i for i in range(1, length + 1)]
        names = ("input_ids", "labels", "prompt_ids", "completion_ids", "KL_completion_ids")
        answers: dict[str, Any] = {"chosen_ids": ids, "rejected_ids": ids[::-1], "margin": float(number)}
        answers[LOSS_WEIGHTS] = [0.5 * number] * length
        return {**dict.fromkeys(names, ids), **answers, "label": number % 2 == 0, "ref_logps": float(number)}

    rows = [row(*each) for each in enumerate(lengths)]
    count = data.draw(st.integers(0, len(rows)))
    collate: Any = COLLATORS[kind]
    batch = collate(rows)
    found = first_rows(batch, count, row_lengths(batch))
    expected = collate(rows[: max(count, 1)])
    assert found.keys() == batch.keys() == expected.keys()
    for name, value in expected.items():
        if name == "labels" and count == 0:
            value = torch.full_like(value, -100)
        if isinstance(value, torch.Tensor) and value.dim() == 2:  # padded to the longest of all rows
            assert torch.equal(found[name][:, : value.shape[1]], value), name
            assert (found[name][:, value.shape[1] :] == (-100 if name == "labels" else 0)).all()
        else:
            assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_packed_documents_are_kept_apart(packed: list[list[int]], data: st.DataObject) -> None:
    rows = [{"input_ids": list(range(1, sum(each) + 1)), "seq_lengths": each} for each in packed]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    count = data.draw(st.integers(1, len(rows)))
    batch = RowLengths(collate)(rows)
    found = first_rows(batch, count, row_lengths(batch))
    for name, value in collate(rows[:count]).items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name
