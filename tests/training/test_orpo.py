"""orpo: TRL's experimental trainer, on the rows and batches of dpo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoTokenizer

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer
from fmstune.training.memory.outlook import outlook
from fmstune.training.rehearsal.auto_batch import find_batch
from fmstune.training.rehearsal.rehearsal import rehearse
from tests.support.short_runs import train

pytestmark = pytest.mark.usefixtures("small_demo")

ROWS = [
    {"prompt": "What does the lamp cost?", "chosen": " It costs nine euros.", "rejected": " It is red."},
    {
        "prompt": "Why?",
        "chosen": " Because it is made of brass and glass.",
        "rejected": " Good morning, dear.",
    },
]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def built(*sets: str) -> BuiltTrainer:
    flags = [("model.path", "demo", "--model"), ("data.train", "pairs.jsonl", "--data")]
    flags.append(("run.method", "orpo", "--method"))
    return build_trainer(load(None, flags, list(sets)), Tracker(), Path("out"))


def test_a_model_without_a_padding_token_is_padded_with_its_end() -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo.model_dir())
    tokenizer.pad_token = None
    model = demo.build_model(42)
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    for part in (tokenizer, model):
        part.save_pretrained("unpadded")
    trainer: Any = built("model.path=unpadded").trainer
    batch, loss = first_loss(trainer)
    assert not batch["attention_mask"].all()
    _, padded = first_loss(built().trainer)
    assert loss == pytest.approx(padded)
    train(Path("out"), "run.method=orpo", "data.train=pairs.jsonl", model="unpadded")
    saved = AutoTokenizer.from_pretrained("out")
    assert saved.pad_token == saved.eos_token


def first_loss(trainer: Any) -> tuple[Any, float]:
    trainer.model.eval()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        return batch, float(trainer.compute_loss(trainer.model, batch))


def test_the_loss_is_that_of_the_paper_from_the_models_own_forward() -> None:
    trainer: Any = built("training.beta=0.3").trainer
    batch, loss = first_loss(trainer)
    own = demo.build_model(42).eval()
    better, odds = [], []
    for ids, mask, answer in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        length = int(mask.sum())
        with torch.no_grad():
            logs = own(input_ids=ids[None, :length]).logits[0, :-1].log_softmax(-1)
        each = logs.gather(-1, ids[1:length, None])[:, 0]
        mean = each[answer[1:length] == 1].double().mean()
        odds.append(mean - torch.log1p(-mean.exp()))
        better.append(each)
    nll = -torch.cat(better[:2]).double().mean()
    ratio = torch.nn.functional.logsigmoid(torch.stack(odds[:2]) - torch.stack(odds[2:]))
    assert loss == pytest.approx(float(nll - 0.3 * ratio.mean()), rel=1e-5)


def test_the_loss_equals_that_of_trls_trainer_on_the_same_text() -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    ours = built()
    _, loss = first_loss(ours.trainer)
    args = ORPOConfig(output_dir="theirs", report_to="none", use_cpu=True, bf16=False, seed=42)
    theirs = ORPOTrainer(
        model=demo.build_model(42),
        args=args,
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=ours.tokenizer,
    )
    assert first_loss(theirs)[1] == pytest.approx(loss, rel=1e-5)


def test_a_run_learns_and_reports_its_metrics() -> None:
    sets = ("run.method=orpo", "training.max_steps=12", "training.eval_strategy=epoch", "data.max_rows=64")
    shown = train(Path("run"), *sets)
    card = Path("run/README.md").read_text()
    assert "| eval/rewards/accuracies |" in card
    last = [line for line in shown.splitlines() if line.startswith("step")][-1]
    assert re.search(r"reward accuracy \d\S*  margin", last)
    assert "tokens/s" in last
    assert "(orpo, full)" in card


def test_memory_estimate_rehearsal_and_batch_search_leave_no_trace() -> None:
    trainer: Any = built("training.per_device_train_batch_size=2").trainer
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    expected = outlook(trainer)
    assert expected is not None
    assert expected.work.scored == expected.work.tokens  # all logits at once
    rehearse(trainer, 4)
    assert find_batch(trainer) == (2, 1)
    assert all(weight.equal(before[name]) for name, weight in trainer.model.named_parameters())
    assert not trainer._stored_metrics["train"]


@pytest.mark.parametrize(
    "setting", ["generate_during_eval=true", "max_completion_length=4", "padding_value=1"]
)
def test_settings_without_effect_are_refused(setting: str) -> None:
    from fmstune.errors import ConfigError

    with pytest.raises(ConfigError, match="is managed by fmstune"):
        built(f"training.{setting}")
