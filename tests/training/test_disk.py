"""A disk that is too small is told before the start; one that fills up leaves a run to go on with."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmstune.errors import RunError
from tests.support.tuned import fmstune, tune, weights

SETS = ["training.eval_strategy=no", "training.max_steps=9"]
STEPS = [part for setting in SETS for part in ("--set", setting)]
ONE_KEPT = "training.save_total_limit=1"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MB; only who may mount one can have it."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_without_room_for_the_checkpoints_is_told_before_the_start(small_disk: Path) -> None:
    with pytest.raises(RunError) as error:
        tune("disk/out", *SETS)
    said = str(error.value)
    assert "3 checkpoints of 4.2 MB and the model of 1.4 MB need 14 MB, and 13 MB are free" in said
    assert ONE_KEPT.replace("=", " = ") in said
    assert not list(small_disk.glob("out/checkpoint-*"))
    tune("disk/out", *SETS, ONE_KEPT, overwrite=True)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_the_run_goes_on_from_it(
    small_disk: Path, tmp_path: Path
) -> None:
    filled = small_disk / "others"
    # Somebody else's file takes the room after the second checkpoint, from a tracker in the training.
    tracker = tmp_path / "filling.py"
    tracker.write_text(FILLING)
    args = ["--output-dir", "disk/out", *STEPS, "--set", ONE_KEPT]
    os.environ["FILL"] = str(filled)
    try:
        done = fmstune(*args, "--tracker", "filling:Filling", cwd=tmp_path)
    finally:
        del os.environ["FILL"]
    assert done.returncode == 1, done.stderr
    assert "the disk is full" in done.stderr
    assert "checkpoint-6 was incomplete and is removed" in done.stderr
    assert "disk/out/checkpoint-3 is complete" in done.stderr
    assert [path.name for path in (small_disk / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    filled.unlink()
    tune("disk/out", *SETS, ONE_KEPT, resume="auto")
    tune("whole", *SETS)
    assert weights(small_disk / "out") == weights(tmp_path / "whole")


FILLING = """
import os
from transformers import TrainerCallback

class Filling:
    def __init__(self, name=None, tracker_config=None): ...
    def track(self, metric, name, stage): ...
    def set_params(self, params, name): ...
    def get_hf_callback(self):
        class Fill(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 5:
                    with open(os.environ["FILL"], "wb", buffering=0) as file:
                        try:
                            while True:
                                file.write(bytes(1 << 16))
                        except OSError:
                            file.truncate(file.tell() - (2 << 20))
        return Fill()
"""


def test_a_file_larger_than_is_allowed_ends_the_run_in_the_same_way(tmp_path: Path) -> None:
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The weights may be written, the optimizer's state may not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, allowed[1]))
    try:
        with pytest.raises(RunError, match="checkpoint-3 was incomplete and is removed") as error:
            tune("out", *SETS)
        assert "a file may not be larger than 2 MB here (ulimit -f)" in str(error.value)
        assert "disk" not in str(error.value)
        assert not list((tmp_path / "out").glob("checkpoint-*"))
        with pytest.raises(RunError, match="the rehearsal's checkpoint could not be written"):
            tune("out", *SETS, "run.rehearse=always", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert not (tmp_path / "out" / "rehearsal").exists()
