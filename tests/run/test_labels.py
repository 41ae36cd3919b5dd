"""`run.name`, `run.group`, `run.tags` and `run.notes` are in the journal from its first line; a resume can
change them, and lists filter runs by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerState

import fmstune
from fmstune.cli.flags import given_flags
from fmstune.config.load.load import load
from fmstune.delivery.journal.labels import Labels, labels
from fmstune.delivery.journal.reader import JournalReader
from tests.support.commands import fmstune as command
from tests.support.journals import journal_path
from tests.support.made_runs import make_run

DEMO = {
    "model.path": "demo", "data.train": "demo", "data.max_rows": 16, "training.save_steps": 1,
    "training.eval_strategy": "no", "resources.interval": 0,
}  # fmt: skip


class FailsAtItsSecondStep(TrainerCallback):
    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            raise RuntimeError("no second step")


def test_a_resumed_run_has_the_labels_of_its_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    token = "hf_" + "a1B2" * 9
    called = {"run.name": "first", "run.group": "g", "run.tags": ["a", "b"], "run.notes": f"with {token}"}
    own = {"training.output_dir": "runs/x", "training.max_steps": 2}
    with pytest.raises(RuntimeError, match="no second step"):
        fmstune.train(settings=DEMO | own | called, callbacks=FailsAtItsSecondStep, quiet=True)
    path = journal_path(tmp_path / "runs" / "x")
    header = JournalReader(path).header
    assert (header.run, header.group, header.tags, header.notes) == (
        "first", "g", ("a", "b"), "with [redacted]",
    )  # fmt: skip

    fmstune.train(settings=DEMO | own | called | {"run.tags": ["c"]}, resume="auto", quiet=True)
    assert labels(path) == Labels("first", "g", ("c",), "with [redacted]")
    assert JournalReader(path).header == header

    for condition, there in (
        ("name=first", True), ("run.tags=c", True), ("tags=a", False), ("run.group=g", True),
        ("notes~redacted", True), ("group=h", False),
    ):  # fmt: skip
        done = command("runs", "list", "--where", condition, "--json", cwd=tmp_path, light=True)
        assert done.returncode == 0, done.stderr
        assert bool(json.loads(done.stdout)) == there, condition


def test_name_and_tag_are_flags() -> None:
    config = load(None, given_flags({"name": "n", "tag": ["a", "b"]}))
    assert (config.run.name, config.run.tags) == ("n", ("a", "b"))


def test_the_runs_group_and_tags_apply_where_a_tracker_has_options_for_them_too(tmp_path: Path) -> None:
    own = {"run.group": "g", "run.tags": ["a"], "trackers.wandb": {"group": "w", "tags": ["b"]}}
    make_run(tmp_path / "runs" / "a", settings=own)
    for condition, there in (("group=g", True), ("group=w", False), ("tags=a", True), ("tags=b", False)):
        done = command("runs", "list", "--where", condition, "--json", cwd=tmp_path, light=True)
        assert bool(json.loads(done.stdout)) == there, condition
