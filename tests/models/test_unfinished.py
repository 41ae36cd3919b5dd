"""Whenever a run is killed while a checkpoint is renamed, a complete one exists at the next start."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmstune.layout import UNFINISHED
from fmstune.models import unfinished
from fmstune.models.checkpoints import damage

WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A checkpoint whose optimizer state is `old`."""
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "name").write_text("old")
    return folder


def saved_again(run: Path, whole: Path) -> Path:
    """A second checkpoint of the same step, ready to be renamed."""
    shutil.copytree(whole, run / "checkpoint-4")
    folder = unfinished.begin(run)
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    (folder / "name").write_text("new")
    return folder


def killed_at(number: int, call: Callable[[], Any]) -> bool:
    """Whether a process was killed right before its file-system change with this number, in `call`."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, args: Any) -> None:
            nonlocal left
            if event in WRITES:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        call()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_kill_at_any_file_change_leaves_a_complete_checkpoint(tmp_path: Path, whole: Path) -> None:
    found = []
    for number in range(100):
        run = tmp_path / str(number)
        folder = saved_again(run, whole)
        killed = killed_at(number, lambda: unfinished.rename_into_place(folder, run / "checkpoint-4"))  # noqa: B023
        again = 0
        # The next start is killed as well, at each of its changes.
        while killed_at(again, lambda: unfinished.remove_leftovers(run)):  # noqa: B023
            again += 1
            both = (run / "checkpoint-4", run / UNFINISHED / "checkpoint-4")
            assert None in map(damage, both), (number, again)
        assert damage(run / "checkpoint-4") is None, number
        assert sorted(path.name for path in run.iterdir()) == ["checkpoint-4"]
        found.append((run / "checkpoint-4" / "name").read_text())
        if not killed:
            break
    assert len(found) > 6
    assert found == sorted(found, reverse=True), "the new one, once it is renamed"
    assert {"old", "new"} == set(found)


def test_a_failed_rename_keeps_the_previous_checkpoint(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = saved_again(tmp_path / "run", whole), Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self == folder:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        unfinished.rename_into_place(folder, tmp_path / "run" / "checkpoint-4")
    assert (tmp_path / "run" / "checkpoint-4" / "name").read_text() == "old"


def test_an_incomplete_pending_checkpoint_is_never_renamed(tmp_path: Path, whole: Path) -> None:
    waiting = tmp_path / UNFINISHED / "checkpoint-4"
    shutil.copytree(whole, waiting)
    (waiting / "trainer_state.json").unlink()
    unfinished.remove_leftovers(tmp_path)
    assert not (tmp_path / "checkpoint-4").exists()


def test_each_write_has_its_own_folder_and_removes_no_other(tmp_path: Path) -> None:
    one, other = unfinished.begin(tmp_path), unfinished.begin(tmp_path)
    (other / "file").touch()
    unfinished.discard(one)
    assert (other / "file").exists()
    unfinished.discard(other)
    assert not (tmp_path / UNFINISHED).exists()


def test_a_link_to_a_checkpoint_elsewhere_is_replaced_and_its_target_is_kept(
    tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    folder = saved_again(run, whole)
    elsewhere = (run / "checkpoint-4").rename(tmp_path / "elsewhere")
    (run / "checkpoint-4").symlink_to(elsewhere)
    unfinished.rename_into_place(folder, run / "checkpoint-4")
    assert [entry.name for entry in run.iterdir()] == ["checkpoint-4"]
    assert not (run / "checkpoint-4").is_symlink()
    assert (run / "checkpoint-4/name").read_text() == "new"
    assert (elsewhere / "name").read_text() == "old"


def test_a_file_with_the_name_of_a_checkpoint_is_refused_and_kept(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    folder = saved_again(run, whole)
    shutil.rmtree(run / "checkpoint-4")
    unfinished.require_names(run)
    (run / "checkpoint-4").write_text("mine")
    for refused in (
        lambda: unfinished.require_names(run),
        lambda: unfinished.rename_into_place(folder, run / "checkpoint-4"),
    ):
        with pytest.raises(FileExistsError, match=r"checkpoint-4 is a file .*: move or rename it\."):
            refused()
    assert (run / "checkpoint-4").read_text() == "mine"
    assert (folder / "name").read_text() == "new"
