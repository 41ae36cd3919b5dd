"""The examples are correct: their commands parse, and every setting in them exists."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fmstune.cli.app import app
from fmstune.cli.main import _with_resume_value
from fmstune.config.load.load import known_keys
from fmstune.trackers.records import MetricPoint, RunStart
from fmstune.trackers.registry import load_reference

CLUSTER = Path(__file__).parents[1] / "examples" / "cluster"


def lines(file: str) -> list[str]:
    """The commands of a script, one per line."""
    text = (CLUSTER / file).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def shell_command(file: str) -> list[str]:
    """The arguments after `fmstune` in a script, with its variables as literal strings."""
    (line,) = [line for line in lines(file) if "fmstune train" in line]
    return shlex.split(line.partition("fmstune ")[2])


def job_command() -> list[str]:
    job = yaml.safe_load((CLUSTER / "pytorchjob.yaml").read_text())
    pods: Any = job["spec"]["pytorchReplicaSpecs"]
    assert pods["Master"] == pods["Worker"]
    command: list[str] = pods["Master"]["template"]["spec"]["containers"][0]["command"]
    assert command[0] == "fmstune"
    return command[1:]


@pytest.mark.parametrize(
    "arguments",
    [shell_command("several-nodes.sh"), shell_command("slurm.sbatch"), job_command()],
    ids=["several-nodes.sh", "slurm.sbatch", "pytorchjob.yaml"],
)
def test_the_commands_of_the_cluster_examples_parse(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    context = group.commands[arguments[0]].make_context("fmstune", _with_resume_value(arguments[1:]))
    assert context.params["resume"] == "auto"
    for setting in context.params["set_"] or []:
        key = setting.partition("=")[0]
        assert key in known_keys() or key.startswith("trackers.aim.")


@pytest.mark.parametrize("file", ["several-nodes.sh", "slurm.sbatch"])
def test_the_scripts_are_valid_shell(file: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / file)], check=True)


def test_the_arguments_of_torchrun_are_its_options() -> None:
    from torch.distributed.run import get_args_parser

    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    (line,) = [line for line in lines("several-nodes.sh") if line.startswith("torchrun ")]
    given = set(re.findall(r"(?<= )--[\w-]+", line.partition("-m fmstune")[0]))
    variables = re.findall(r"\bPET_(\w+)=", "\n".join(lines("slurm.sbatch")))
    assert given
    assert variables
    assert given | {f"--{name.lower()}" for name in variables} <= known


def test_the_example_tracker_keeps_events_of_two_runs_in_one_database_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(CLUSTER.parent / "tracker-package")
    tracker_class = load_reference("fmstune_sqlite:SqliteTracker", "sqlite")
    path, run = tmp_path / "runs.db", None
    for own, value in (("one", 1.0), ("other", 2.0), ("other", 3.0)):
        tracker = tracker_class("sqlite", {"path": str(path)})
        run = tracker.open(RunStart("r", ".", run, run_id=own, after=40)).id
        tracker.seq = 41
        tracker.track_point(MetricPoint({"loss": value}, "train", 7))
        tracker.close("finished")
    with sqlite3.connect(path) as database:
        assert list(database.execute("SELECT source, value FROM metrics")) == [("one", 1.0), ("other", 3.0)]
