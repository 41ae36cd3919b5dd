"""The summary at the end of a run: every number is from its journal, and every printed command can be
pasted."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer.main
from rich.console import Console

from fmstune.api import train
from fmstune.cli.app import app
from fmstune.delivery.ledger import Ledger
from fmstune.report.console import SummingConsole
from fmstune.report.ending import ending
from tests.support.commands import fmstune
from tests.support.made_runs import end_run, make_run, start_run, with_settings
from tests.support.tracked import rewrite_as_interrupted, tune


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def with_metrics(directory: Path, *values: tuple[str, Mapping[str, float], int]) -> Path:
    recorder = start_run(directory)
    recorder.set_params(with_settings({}), "config")
    for stage, figures, step in values:
        recorder.track_sample(dict(figures), stage, step)
    end_run(recorder)
    return directory


def labelled(directory: Path) -> dict[str, str]:
    return dict(ending(directory).lines())


def test_losses_are_shown_as_first_best_and_last() -> None:
    make_run(Path("a"), {1: 3.0, 2: 1.0, 3: 2.0}, eval_loss=1.5)
    assert labelled(Path("a"))["loss"] == "3 → best 1 at step 2 → 2"
    assert labelled(Path("a"))["eval"] == "1.5"
    make_run(Path("b"), {1: 3.0, 2: 1.0})
    assert labelled(Path("b"))["loss"] == "3 → 1 (the best)"
    make_run(Path("c"), {1: 3.0, 2: float("nan")})
    assert labelled(Path("c"))["loss"].endswith("1 value is not finite")
    make_run(Path("d"), {})
    assert "loss" not in labelled(Path("d"))


def test_time_is_summed_over_everything_tracked_even_twice_per_step() -> None:
    with_metrics(
        Path("a"),
        ("system", {"startup_imports_seconds": 5.0, "startup_model_seconds": 1.0}, 0),
        ("train", {"num_tokens": 3000.0}, 3),
        ("system", {"forward_seconds": 2.0, "backward_seconds": 3.0}, 3),
        ("system", {"forward_seconds": 1.0, "evaluation_seconds": 4.0}, 3),
    )
    found = ending(Path("a"))
    assert {name: found.time[name] for name in ("imports", "forward", "evaluation")} == {
        "imports": 5.0, "forward": 3.0, "evaluation": 4.0,
    }  # fmt: skip
    assert found.tokens == 3000
    assert found.tokens_per_second == 500.0
    assert list(found.time.values()) == sorted(found.time.values(), reverse=True)


def test_the_throughput_of_a_resumed_run_counts_the_time_of_repeated_steps_once() -> None:
    recorder = start_run(Path("a"))
    for step in (1, 2, 3):
        recorder.track_sample({"num_tokens": 100.0 * step}, "train", step)
        recorder.track_sample({"forward_seconds": 1.0}, "system", step)
    end_run(recorder, None)
    again = start_run(Path("a"))
    again.resumed(1)
    for step in (2, 3):
        again.track_sample({"num_tokens": 100.0 * step}, "train", step)
        again.track_sample({"forward_seconds": 1.0}, "system", step)
    end_run(again)
    found = ending(Path("a"))
    assert (found.tokens, found.tokens_per_second) == (300, 100.0)
    assert found.time["forward"] == 5.0


def test_energy_is_the_power_of_all_gpus_times_the_time_between_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = start_run(Path("a"))
    for second, watts in ((0, 100.0), (36, 300.0), (72, 300.0)):
        monkeypatch.setattr("time.time", lambda second=second: 1_700_000_000.0 + second)
        recorder.track_sample({"gpu_0_power_watts": watts, "gpu_1_power_watts": 50.0}, "system", 1)
    end_run(recorder)
    assert ending(Path("a")).energy == pytest.approx((200 * 36 + 300 * 36 + 50 * 72) / 3600)


def test_a_local_aim_repository_is_opened_by_a_command_with_its_path() -> None:
    make_run(Path("a"))
    Ledger("aim", url="/my runs").save(Path("a"))
    Ledger("wandb", url="https://wandb.ai/x").save(Path("a"))
    assert ending(Path("a")).opens == {"aim": "aim up --repo '/my runs'"}


def test_each_suggested_command_can_be_pasted() -> None:
    make_run(Path("my run"))
    commands = ending(Path("my run")).next
    assert [shlex.split(each)[1] for each in commands] == ["generate", "merge", "runs"]
    for command in commands:
        group = typer.main.get_command(app)
        _, *arguments = shlex.split(command)
        while hasattr(group, "commands"):
            group = group.commands[arguments.pop(0)]
        group.make_context("fmstune", arguments)


def test_on_a_terminal_no_command_is_wrapped() -> None:
    directory = make_run(Path("a" * 120))
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, no_color=True)
    SummingConsole(console, answer=None).end(directory)
    lines = screen.getvalue().splitlines()
    assert lines[0].startswith("finished ─")
    assert any(line.endswith(f"fmstune runs show {directory}") for line in lines)


def test_an_unfinished_run_is_resumed_by_the_command_that_it_printed(tmp_path: Path) -> None:
    tune("runs/a b", "training.save_steps=3")
    rewrite_as_interrupted(Path("runs/a b"))
    command = ending(Path("runs/a b")).next[0]
    assert command == "fmstune train 'runs/a b/config.toml' --resume"
    done = fmstune(*shlex.split(command)[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resume   from runs/a b/checkpoint-12" in done.stderr
    assert done.stdout == "runs/a b\n"
    again = fmstune("train", "--resume", cwd=tmp_path)
    assert again.returncode == 2
    assert "finds no unfinished run in runs/" in again.stderr


def test_resume_without_a_path_resumes_the_newest_unfinished_run_and_names_it(tmp_path: Path) -> None:
    tune("runs/a", "training.save_steps=3", "training.learning_rate=0.003")
    rewrite_as_interrupted(Path("runs/a"))
    make_run(Path("runs/b"))
    Path("fmstune.toml").write_text('model.path = "demo"\ndata.train = "demo"\n')
    done = fmstune("train", "--resume", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("resume   runs/a, with its config.toml; fmstune.toml is not read\n")
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["run"], summary["status"], summary["step"]) == ("runs/a", "finished", 12)
    assert "changed since" not in done.stderr


@pytest.mark.parametrize("given", [["runs/a"], ["runs/a/checkpoint-12"], ["auto", "--output-dir", "runs/a"]])
def test_a_named_run_is_resumed_with_its_own_settings_and_never_as_the_demo(
    given: list[str], tmp_path: Path
) -> None:
    Path("mine.jsonl").write_text('{"text": "a red pencil"}\n' * 8)
    tune("runs/a", "model.path=demo", "data.train=mine.jsonl", "training.save_steps=3")
    rewrite_as_interrupted(Path("runs/a"))
    done = fmstune("train", "--resume", *given, "--set", "training.max_steps=14", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("resume   runs/a, with its config.toml\n")
    assert "mine.jsonl · 8 rows" in done.stderr
    assert "changed since the run was started: training.max_steps (12 → 14)\n" in done.stderr
    train(resume=given[0], settings={"training.output_dir": "runs/a", "training.max_steps": 16}, quiet=True)
    assert 'train = "mine.jsonl"' in Path("runs/a/config.toml").read_text()
    Path("runs/a/config.toml").unlink()
    done = fmstune("train", "--resume", *given, cwd=tmp_path, light=True)
    assert done.returncode == 2
    assert "--resume: no runs/a/config.toml says what" in done.stderr


def test_a_shared_configuration_does_not_select_the_run_to_resume(tmp_path: Path) -> None:
    Path("mine.toml").write_text('model.path = "demo"\ndata.train = "demo"\n')
    done = fmstune("train", "mine.toml", "--resume", cwd=tmp_path, light=True)
    assert done.returncode == 2
    assert "which run of mine.toml to resume" in done.stderr
