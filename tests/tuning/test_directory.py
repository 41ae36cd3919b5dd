"""Which directory a run gets, on each of its ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmstune.config.errors import ConfigError
from fmstune.config.load import load
from fmstune.config.schema import RunConfig
from fmstune.tuning.directory import claim
from tests.conftest import open_journal


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configured(output: str | None = None) -> RunConfig:
    return load(None, [("training.output_dir", output, "--output-dir")] if output else [])


def test_other_ranks_take_what_rank_zero_has_begun_for_their_own_run() -> None:
    Path("out/tracking").mkdir(parents=True)
    open_journal(Path("out")).close()
    with pytest.raises(ConfigError, match="holds a run that is interrupted"):
        claim(configured("out"), None, overwrite=False)
    assert claim(configured("out"), None, overwrite=False, main=False).path == Path("out")
    assert claim(configured("out"), "auto", overwrite=False, main=False).checkpoint is None


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_that_is_still_going_is_left_alone(overwrite: bool, resume: str | None) -> None:
    Path("out/tracking").mkdir(parents=True)
    going = open_journal(Path("out"))
    with pytest.raises(ConfigError, match=rf"out: another process \(pid {os.getpid()}\) is at this run"):
        claim(configured("out"), resume, overwrite=overwrite)
    assert claim(configured("out"), resume, overwrite=overwrite, main=False).path == Path("out")
    going.close()
    assert claim(configured("out"), "auto", overwrite=False).path == Path("out")


def test_ranks_of_one_launcher_choose_the_same_new_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code = (
        "import time; from fmstune.config.load import load; from fmstune.tuning.directory import claim\n"
        "print(claim(load(None), None, overwrite=False).path)"
    )
    names = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert len(names) == 1
    assert names.pop().startswith("runs/demo-")


def test_several_machines_have_to_be_told_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--output-dir"):
        claim(configured(), None, overwrite=False)
    assert claim(configured("out"), None, overwrite=False).path == Path("out")
