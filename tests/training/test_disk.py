"""A disk that is too small is reported before the start; a full one leaves a run that can be resumed."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from fmstune.errors import RunError
from fmstune.training.extensions import Extensions
from tests.support.commands import ROOT
from tests.support.file_systems import mounted
from tests.support.tuned import tune, weights
from tests.support.unprivileged import unprivileged

SETS = ["training.eval_strategy=no", "training.max_steps=9"]
ONE_KEPT = "training.save_total_limit=1"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    with mounted(tmp_path / "disk", "size=12m") as path:
        yield path


def test_a_disk_too_small_for_the_checkpoints_is_reported_before_the_start(small_disk: Path) -> None:
    with pytest.raises(RunError) as error:
        tune("disk/out", *SETS)
    said = str(error.value)
    assert "3 checkpoints of 4.2 MB and the model of 1.4 MB need 14 MB, and 13 MB are free" in said
    assert ONE_KEPT.replace("=", " = ") in said
    assert not list(small_disk.glob("out/checkpoint-*"))
    tune("disk/out", *SETS, ONE_KEPT, overwrite=True)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_the_run_resumes_from_it(
    small_disk: Path, tmp_path: Path
) -> None:
    filled = small_disk / "others"
    with pytest.raises(RunError) as error:
        tune("disk/out", *SETS, ONE_KEPT, extensions=Extensions((Fills(filled),)))
    said = str(error.value)
    assert error.value.exit_code == 1
    assert "the disk is full" in said
    assert "checkpoint-6 was incomplete and is removed" in said
    assert "disk/out/checkpoint-3 is complete" in said
    assert [path.name for path in (small_disk / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    filled.unlink()
    tune("disk/out", *SETS, ONE_KEPT, resume="auto")
    tune("whole", *SETS)
    assert weights(small_disk / "out") == weights(tmp_path / "whole")


class Fills(TrainerCallback):
    """Fills the disk after the second checkpoint, as another program's file would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            while not (self.path.parent / "out/checkpoint-3").is_dir():  # it is written beside the training
                time.sleep(0.01)
            with open(self.path, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError:
                    file.truncate(file.tell() - (2 << 20))


def test_a_file_that_exceeds_the_size_limit_ends_the_run_in_the_same_way(tmp_path: Path) -> None:
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The weights fit under the limit, the optimizer state does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, allowed[1]))
    try:
        with pytest.raises(RunError, match="checkpoint-3 was incomplete and is removed") as error:
            tune("out", *SETS)
        assert "a file may not be larger than 2 MB here (ulimit -f)" in str(error.value)
        assert "disk" not in str(error.value)
        assert "save_total_limit" not in str(error.value)  # the limit is that of a single file
        assert not list((tmp_path / "out").glob("checkpoint-*"))
        with pytest.raises(RunError, match="the rehearsal's checkpoint could not be written"):
            tune("out", *SETS, "run.rehearse=always", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert not list((tmp_path / "out").glob("rehearsal*"))


def test_a_directory_that_is_closed_during_the_run_ends_it_with_the_checkpoint_and_the_remedy(
    tmp_path: Path,
) -> None:
    code = """
import os, time
from transformers import TrainerCallback
from fmstune.training.extensions import Extensions
from tests.support.tuned import tune

class Closes(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            while not os.path.isdir("out/checkpoint-3"):  # it is written beside the training
                time.sleep(0.01)
            os.chmod("out", 0o555)

try:
    tune("out", "training.eval_strategy=no", extensions=Extensions((Closes(),)))
except Exception as error:
    print(getattr(error, "exit_code", None), error)
"""
    done = unprivileged(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", tmp_path)
    (tmp_path / "out").chmod(0o755)
    assert done.stdout.strip().splitlines()[-1] == (
        "1 out could not be written to (Permission denied): checkpoint-6 was incomplete and is removed. "
        "out/checkpoint-3 is complete: `chmod u+rwx out` gives you access, and resume with --resume."
    ), done
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint*")) == ["checkpoint-3"]
