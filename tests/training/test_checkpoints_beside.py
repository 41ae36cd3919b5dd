"""Checkpoints are written beside the training: as the Trainer itself would have written them, whole or not at
all, and what goes wrong with one ends the run."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory as Folder
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainerCallback

from fmstune.layout import UNFINISHED
from fmstune.system.memory import Capacity
from fmstune.training.extensions import Extensions
from fmstune.training.trainers import checkpoints as beside
from fmstune.training.trl_compat import large_files_later
from tests.support.tuned import fmstune, tune, weights

SETS = ["training.eval_strategy=no", "training.save_steps=2", "training.logging_steps=1"]
OF_THE_RUN = {"training_args.bin", "trainer_state.json"}
"""They hold objects and times."""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class AtStep(TrainerCallback):
    """Sets an event when a step is made."""

    def __init__(self, step: int) -> None:
        self.made, self._step = threading.Event(), step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self.made.set()


@pytest.mark.parametrize("lora", [False, True])
def test_it_holds_what_the_trainer_writes_itself_though_the_training_goes_on_meanwhile(
    lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = AtStep(4)
    ours, write = beside.write_parts, beside._Writing.run

    def both(trainer: Any, folder: Path, named: Path) -> None:
        ours(trainer, folder, named)
        if named.name == "checkpoint-3":  # in another thread, whose files are no business of the first one's
            other = threading.Thread(target=Trainer._save_checkpoint, args=(trainer, trainer.model, None))
            other.start()
            other.join()
            shutil.move(named, "reference")

    def held(self: Any) -> None:
        if self.checkpoint == "checkpoint-3":
            assert later.made.wait(60)
        write(self)

    monkeypatch.setattr(beside, "write_parts", both)
    monkeypatch.setattr(beside._Writing, "run", held)
    adapter = f"lora.enabled={lora}".lower()
    tune("out", *SETS, "training.save_steps=3", adapter, extensions=Extensions((later,)))
    found, reference = Path("out/checkpoint-3"), Path("reference")
    files = {path.name for path in reference.iterdir()}
    assert {path.name for path in found.iterdir() if path.is_file()} == files
    assert "optimizer.pt" in files
    for name in files - OF_THE_RUN:
        assert (found / name).read_bytes() == (reference / name).read_bytes(), name
    assert weights(found) != weights("out")
    assert not Path("out", UNFINISHED).exists()


@pytest.mark.parametrize("moment", ["model", "optimizer", "whole"])
def test_a_run_killed_while_one_is_written_resumes_from_the_one_before(moment: str, tmp_path: Path) -> None:
    (tmp_path / "killing.py").write_text(KILLING.replace("MOMENT", repr(moment)))
    sets = [part for setting in SETS for part in ("--set", setting)]
    killed = fmstune("--output-dir", "out", *sets, "--set", 'run.callbacks=["killing:Killing"]', cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert Path("out", UNFINISHED).is_dir()
    shown = tune("out", *SETS, resume="auto")
    assert "from out/checkpoint-2" in shown
    assert not Path("out", UNFINISHED).exists()


KILLING = """
import os, signal, threading
from pathlib import Path
import safetensors.torch, torch
from transformers import TrainerCallback
from fmstune.training.trainers import checkpoints

def kill(name, half):
    if name == MOMENT and Path("out/checkpoint-2").exists() and threading.current_thread() is not MAIN:
        with open(half, "r+b") if half else open(os.devnull) as file:
            if half:
                file.truncate(os.path.getsize(half) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

MAIN = threading.current_thread()
model, other = safetensors.torch.save_file, torch.save

def save_file(tensors, filename, metadata=None):
    model(tensors, filename, metadata=metadata)
    kill("model", filename)

def save(value, f, *args, **kwargs):
    other(value, f, *args, **kwargs)
    kill("optimizer", f)

def run(self):
    self._write()
    kill("whole", None)
    self._place()

class Killing(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        safetensors.torch.save_file, torch.save = save_file, save
        if MOMENT == "whole":
            checkpoints._Writing.run = run
"""


def test_what_goes_wrong_with_the_last_one_beside_the_training_ends_the_run_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later, write = AtStep(6), beside._Writing.run

    def fails(self: Any) -> None:
        if self.checkpoint == "checkpoint-5":
            assert later.made.wait(60)  # after the last step nothing else would ask for it
            self._write = wrong
        write(self)

    def wrong() -> None:
        raise PermissionError("not this one")

    monkeypatch.setattr(beside._Writing, "run", fails)
    with pytest.raises(PermissionError, match="not this one"):
        tune("out", *SETS, "training.save_steps=5", extensions=Extensions((later,)))
    assert not list(Path("out").glob("checkpoint-*"))


class Reading(TrainerCallback):
    """Somebody's own, which looks at each checkpoint when the Trainer says that it is saved."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(Path(args.output_dir, f"checkpoint-{state.global_step}", "optimizer.pt").exists())


def test_one_who_reads_checkpoints_when_they_are_saved_finds_them_and_the_training_waits() -> None:
    reading = Reading()
    shown = tune("out", *SETS, extensions=Extensions((reading,)))
    assert reading.seen == [True, True, True]
    assert shown.count("the training waits until each checkpoint is written: Reading is called") == 1


def test_without_memory_for_a_copy_the_training_waits_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    little = SimpleNamespace(
        main_memory=lambda: Capacity(1_000, "the container (its cgroup)"), peak=lambda: 0, taken=lambda: 0
    )
    monkeypatch.setattr(beside, "memory", little)
    shown = tune("out", *SETS)
    assert shown.count("the training waits until each checkpoint is written: a copy needs 4.2 MB") == 1
    assert Path("out/checkpoint-4/optimizer.pt").exists()


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=3),
        st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda shape: torch.ones(shape)),
        st.sampled_from([torch.bfloat16, torch.int64, torch.bool]).map(torch.ones(4).to),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


@settings(max_examples=30)
@given(value=VALUES, shared=st.sampled_from(["nothing", "a tensor", "a view", "a set"]))
def test_a_copy_is_saved_as_what_was_copied_whatever_becomes_of_that(value: Any, shared: str) -> None:
    large = torch.arange(1 << 18, dtype=torch.float32)
    more = {"nothing": [], "a tensor": [large], "a view": [large[5:9]], "a set": [{1, 2}]}[shared]
    state = {"value": value, "large": large, "more": more}
    with Folder() as folder:
        torch.save(state, f"{folder}/now.pt")
        with large_files_later() as later:
            torch.save(state, f"{folder}/then.pt")
        assert len(later) == (shared in ("nothing", "a tensor"))
        for each in tensors(state):
            each.zero_()
        for write in later:
            write()
        # Of the names in it, the archive's own is the file's.
        saved = [torch.load(f"{folder}/{name}.pt", weights_only=False) for name in ("now", "then")]
        assert repr(saved[0]) == repr(saved[1])
        assert torch.equal(saved[0]["large"], saved[1]["large"])
        assert float(saved[1]["large"][-1]) == (1 << 18) - 1
