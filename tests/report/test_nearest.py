"""Every command that takes a run suggests the nearest one if there is none of that name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fmstune.cli.app import app
from fmstune.config.paths.runs import means_run, nearest_run, no_such_run
from fmstune.errors import ModelError
from fmstune.models.locate import locate
from tests.support.made_runs import make_run

COMMANDS = [
    ["generate", "RUN", "--prompt", "p"],
    ["merge", "RUN", "out"],
    ["config", "diff", "RUN"],
    ["trackers", "sync", "RUN"],
    ["train", "--resume", "RUN"],
    ["train", "--model", "RUN", "--data", "demo", "--dry-run"],
    ["runs", "list", "RUN"],
    ["runs", "show", "RUN"],
    ["runs", "plot", "RUN"],
    ["runs", "compare", "RUN", "RUN"],
    ["runs", "export", "RUN"],
    ["runs", "rm", "RUN"],
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("baseline", "lora-r16", "smollm-20261126-104128"):
        make_run(tmp_path / "runs" / name)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_nearest_run_is_suggested(command: list[str], here: Path) -> None:
    given = [part.replace("RUN", "runs/lora-r61") for part in command]
    error = CliRunner().invoke(app, given).exception
    assert "Did you mean runs/lora-r16?" in str(error)
    assert getattr(error, "exit_code", None) == 2


def test_a_run_is_found_by_the_name_that_it_was_given(here: Path) -> None:
    (here / "runs/baseline/config.toml").write_text('[run]\nname = "lr-1e-3"\n')
    assert nearest_run(Path("lr-1e-3")) == " Did you mean runs/baseline, the run of this name?"
    assert nearest_run(Path("runs/lr-1e-3")) == " Did you mean runs/baseline, the run of this name?"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("runs/baselin", " Did you mean runs/baseline?"),
        ("baseline", " Did you mean runs/baseline?"),
        ("runs/smollm", " Did you mean runs/smollm-20261126-104128?"),
        ("runs/zzz", " The newest run is runs/smollm-20261126-104128; `fmstune runs list` shows all."),
    ],
)
def test_the_suggestion_is_a_close_name_or_otherwise_the_newest_run(
    named: str, said: str, here: Path
) -> None:
    assert nearest_run(Path(named)) == said


def test_without_runs_none_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert no_such_run(Path("runs/x")) == "there is no directory runs/x."


def test_a_name_on_the_hub_is_no_run(here: Path) -> None:
    (here / "owner").mkdir()
    assert not any(map(means_run, ("owner/name", "gpt2", "demo", "HuggingFaceTB/SmolLM2-135M")))
    make_run(here / "owner" / "a-run")
    assert means_run("owner/name")


@given(name=st.text(max_size=300))
def test_any_name_can_be_requested(name: str) -> None:
    assert isinstance(nearest_run(Path(name)), str)
    assert isinstance(means_run(name), bool)


def test_a_runs_own_name_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "mine")
    with pytest.raises(ModelError, match=r"there is no directory mine here\. Did you mean runs/mine\?"):
        locate("mine")
