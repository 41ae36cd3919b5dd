"""A run killed at any moment while it writes a checkpoint in the background can be resumed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from fmstune.layout import UNFINISHED
from fmstune.models import unfinished
from fmstune.models.checkpoints import newest_checkpoint, step_of
from tests.support.tuned import fmstune, tune

SETS = ["training.eval_strategy=no", "training.save_steps=2", "training.logging_steps=1"]
TWICE = ["training.max_steps=-1", "training.num_train_epochs=2", "training.save_total_limit=1"]
"""Epochs of six steps: steps 6 and 12 are saved twice."""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("moment", ["model", "optimizer", "whole"])
def test_a_run_killed_while_a_checkpoint_is_written_resumes_from_the_one_before(
    moment: str, tmp_path: Path
) -> None:
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


RANDOM_KILL = """
import os, random, signal, sys
from pathlib import Path
from transformers import TrainerCallback

SEED = {seed}
left = random.Random(SEED).randrange(150)

def count(event, args):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "open"):
        if "checkpoint" in str(args[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

class Killing(TrainerCallback):
    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save = True
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            sys.addaudithook(count)
"""


@pytest.mark.parametrize("seed", random.Random(7).sample(range(10_000), 3))
def test_a_run_killed_at_a_random_file_change_has_a_checkpoint_to_resume_from(
    seed: int, tmp_path: Path
) -> None:
    (tmp_path / "killing.py").write_text(RANDOM_KILL.format(seed=seed))
    sets = [part for setting in (*SETS, *TWICE) for part in ("--set", setting)]
    extra = ["--set", 'run.callbacks=["killing:Killing"]']
    killed = fmstune("--output-dir", "out", *sets, *extra, cwd=tmp_path)
    assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
    unfinished.restore_names(Path("out"))
    found = newest_checkpoint(Path("out"))
    assert found is not None, seed
    assert step_of(found) >= 2, seed
