"""Shell completion, requested as a shell requests it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import fmstune
from tests.support.made_runs import make_run


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def completed(*words: str) -> list[str]:
    """The completions for a <TAB> after the last of these words."""
    asked = {"COMP_WORDS": " ".join(["fmstune", *words]), "COMP_CWORD": str(len(words))}
    done = fmstune(cwd=Path.cwd(), light=True, _FMSTUNE_COMPLETE="complete_bash", **asked)
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_commands_trackers_methods_and_settings_are_completed() -> None:
    assert completed("tra") == ["train", "trackers"]
    assert completed("train", "--tracker", "ai") == ["aim"]
    assert completed("train", "--method", "d") == ["dpo"]
    assert completed("train", "--set", "training.learning_ra") == ["training.learning_rate="]
    assert completed("train", "--set", "trackers.aim.re") == ["trackers.aim.repo="]
    assert {"tracking.trackers=", "training.max_steps="} <= {*completed("train", "--set", "tra")}


def test_runs_are_completed_in_their_directories() -> None:
    make_run(Path("runs/a"))
    make_run(Path("runs/b"))
    make_run(Path("mine"))
    Path("other").mkdir()
    assert completed("runs", "show", "runs/") == ["runs/a", "runs/b"]
    assert completed("runs", "show", "r") == ["runs/"]
    assert completed("runs", "show", "m") == ["mine"]
    assert completed("runs", "show", "o") in ([], [""])


def test_completion_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fmstune.cli.completion import *\n"
        "complete_setting('tra'); complete_run('runs/'); complete_tracker('a'); complete_method('s')\n"
        "assert not {'torch', 'transformers', 'trl', 'aim', 'wandb', 'mlflow', 'trackio', 'datasets'} & "
        "{*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
