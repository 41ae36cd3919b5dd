"""The recorded settings of a run are those that it used: `config explain`, config.toml and TRL agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch

from fmstune.config.inspect.decided import decided_by
from fmstune.config.inspect.explain import explain
from fmstune.config.load.load import load
from fmstune.config.methods.known import METHODS
from fmstune.config.schema.managed import OWNED_TRAINING, RENAMED_TRAINING
from fmstune.config.schema.training import training_fields
from fmstune.trackers.base import Tracker
from fmstune.training.build import build_trainer
from fmstune.training.decided import decided, plain, same
from tests.support.tuned import tune

SETTINGS = (
    (),
    (
        "training.load_best_model_at_end=true",
        "training.bf16=true",
        "training.optim=adafactor",
        "training.warmup_steps=2",
        "training.debug=underflow_overflow",
        "training.accelerator_config={split_batches=true}",
        "training.lr_scheduler_kwargs={num_cycles=2}",
        "training.gradient_checkpointing=true",
    ),
)


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("sets", SETTINGS, ids=("defaults", "settings"))
@pytest.mark.parametrize("method", METHODS)
def test_explained_settings_equal_those_of_the_trainer(method: str, sets: tuple[str, ...]) -> None:
    config = load(None, [("run.method", method, "--method")], [*sets, "data.max_rows=24"])
    built = build_trainer(config, Tracker(), Path("out"))
    found = decided(config, built)

    for name in training_fields(method):
        if name in OWNED_TRAINING or name == "output_dir":
            continue
        told, used = explain(config, f"training.{name}"), plain(getattr(built.trainer.args, name))
        if told.decided:
            assert same(found[name], used), name
        else:
            assert name not in found
            assert name in RENAMED_TRAINING or same(told.value, used), (name, told.value, used)
        if told.origin != "default":
            assert not told.decided, f"{name} was set by the user"


def test_a_run_records_the_defaults_that_it_chose() -> None:
    tune("out", "training.max_steps=1", "training.eval_strategy=no", "training.save_strategy=no")
    events = [json.loads(line) for line in Path("out/tracking/journal.jsonl").read_text().splitlines()]
    found: dict[str, Any] = next(event["values"] for event in events if event.get("name") == "decided")
    text = Path("out/config.toml").read_text()

    args = torch.load("out/training_args.bin", weights_only=False)
    assert (args.max_length, args.padding_free) == (256, found["padding_free"])
    assert found["bf16"] is False
    assert found["optim"].startswith("adamw_torch")
    assert all(f"# training.{name} = {json.dumps(value)}\n" in text for name, value in found.items())
    assert not set(found) & set(tomli.loads(text)["training"]), "another machine chooses for itself"


def test_only_unset_settings_are_chosen_at_run_time() -> None:
    config = load(None, sets=["training.bf16=true", "training.use_cpu=true"])
    assert not decided_by(config, "bf16")
    assert not decided_by(config, "fp16")
    assert not decided_by(config, "use_cpu")
    assert decided_by(config, "optim")
