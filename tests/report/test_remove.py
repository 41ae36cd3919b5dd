"""`fmstune runs rm` asks, lists what it will delete, and deletes exactly that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fmstune.cli.app import app
from fmstune.delivery.ledger import Ledger
from fmstune.report import remove
from fmstune.system import locks
from tests.support.journals import events
from tests.support.made_runs import end_run, make_run, start_run
from tests.support.terminals import in_terminal


def rm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["runs", "rm", *map(str, arguments)])


def tree(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = make_run(tmp_path / "run")
    for name in ("config.toml", "model.safetensors", "checkpoint-5/optimizer.pt"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("x")
    return directory


def test_a_run_is_deleted_with_its_directory_and_reported(run: Path) -> None:
    done = rm(run, "--yes")
    assert done.exit_code == 0
    assert "checkpoint-5/, config.toml, model.safetensors, tracking/" in done.output
    assert not run.exists()


def test_files_that_are_not_the_runs_stay_and_are_named(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    done = rm(run, "--yes")
    assert "keep     1 other there: notes.txt" in done.output
    assert tree(run) == {Path("notes.txt")}


def test_without_a_terminal_nothing_is_asked_and_nothing_deleted(run: Path) -> None:
    before = tree(run)
    done = rm(run)
    assert "add --yes" in str(done.exception)
    assert tree(run) == before


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("y", False)])
def test_in_a_terminal_it_asks(run: Path, answer: str, stays: bool) -> None:
    said = in_terminal(["runs", "rm", str(run)], f"{answer}\n")
    assert "Delete this?" in said
    assert run.exists() == stays


def test_a_running_run_is_never_deleted(run: Path) -> None:
    recorder = start_run(run)
    before = tree(run)
    try:
        done = rm(run, "--yes")
    finally:
        end_run(recorder)
    assert "is running this run" in str(done.exception)
    assert tree(run) == before


def test_a_run_that_is_resumed_between_question_and_answer_is_not_deleted(run: Path) -> None:
    plan = remove.planned(run)
    recorder = start_run(run)
    try:
        with pytest.raises(remove.ConfigError, match="running this run"):
            remove.remove(plan)
    finally:
        end_run(recorder)
    assert (run / "model.safetensors").exists()


def test_a_directory_that_is_no_run_is_never_deleted_nor_are_neighbouring_runs(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    (tmp_path / "link").symlink_to(run)
    before = tree(tmp_path)
    for wrong in (folder, run / "checkpoint-5", run / "config.toml", tmp_path / "link", tmp_path / "nope"):
        assert rm(run, wrong, "--yes").exit_code != 0
        assert tree(tmp_path) == before


def test_a_symlink_inside_a_run_is_deleted_and_its_target_is_not(run: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    (run / "checkpoint-9").symlink_to(tmp_path / "precious")
    assert rm(run, "--yes").exit_code == 0
    assert not run.exists()
    assert (tmp_path / "precious" / "x").exists()


def test_a_run_whose_tracking_folder_is_a_link_is_deleted_with_its_events(run: Path, tmp_path: Path) -> None:
    (run / "tracking").rename(tmp_path / "disk")
    (run / "tracking").symlink_to(tmp_path / "disk")
    assert rm(run, "--yes").exit_code == 0
    assert not run.exists()
    assert not tree(tmp_path / "disk")


def test_a_run_that_is_being_delivered_is_never_deleted(run: Path) -> None:
    plan = remove.planned(run)
    lock = locks.acquire(run / "tracking" / "aim.lock")
    assert lock is not None
    before = tree(run)
    holds = subprocess.Popen(["sleep", "60"], pass_fds=[lock._file])  # another process, as a shipper is
    try:
        done = rm(run, "--yes")
        assert f"another process (pid {os.getpid()}) is delivering it to aim" in str(done.exception)
        for_another = "from sys import argv; from pathlib import Path; from fmstune.report.remove import *; "
        code = f"{for_another}remove(Removal(Path(argv[1]), [], 0, []))"
        ended = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True)
        assert "is delivering it to aim" in ended.stderr
        assert tree(run) == before
    finally:
        holds.kill()
        holds.wait()
        lock.release()
    remove.remove(plan)
    assert not run.exists()


def test_what_trackers_lack_of_a_run_is_said_before_it_is_deleted(run: Path) -> None:
    Ledger("aim", delivered=1, safe_delivered=1).save(run)
    total = len(events(run))
    said = in_terminal(["runs", "rm", str(run)], "n\n").replace("\r", "")
    assert f"lose     what trackers lack (aim 1/{total}); `fmstune trackers sync {run}` delivers it" in said
