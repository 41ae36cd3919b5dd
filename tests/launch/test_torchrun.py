"""Plain torchrun and accelerate: they end as usual, with fmstune's cause in their table."""

from __future__ import annotations

import importlib.metadata
import signal
from pathlib import Path

import pytest

from tests.support import commands
from tests.support.aim_servers import free_port
from tests.support.commands import FAST, Command
from tests.support.ranks import ACCELERATE, CALLBACKS, CURSED, TORCHRUN, have_ended, pids, with_callback

TRAIN = ["-m", "fmstune", "train", "--output-dir", "out", *FAST]
LOG = ["--set", "run.termination_log=why"]


@pytest.fixture(autouse=True)
def _callbacks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CALLBACKS)


def start(arguments: list[str], cwd: Path) -> Command:
    return commands.start(*TORCHRUN, *arguments, cwd=cwd, module="torch.distributed.run")


@pytest.mark.parametrize(
    ("wrong", "code", "cause"),
    [
        (["--model", "demo", "--data", "no.jsonl"], 2, "data.train = 'no.jsonl': there is no such file."),
        (with_callback("Fails"), 1, CURSED),
    ],
    ids=["data", "training"],
)
def test_the_cause_is_the_root_cause_in_torchruns_table_and_in_the_termination_log(
    wrong: list[str], code: int, cause: str, tmp_path: Path
) -> None:
    launcher = start([*TRAIN, *wrong, *LOG], tmp_path)
    _, shown = launcher.communicate()
    assert launcher.returncode == 1
    root = shown.partition("Root Cause")[2]
    assert cause in root
    assert f"(exitcode: {code})" in root.replace("exitcode  : ", "(exitcode: ").replace(" (pid", ") (pid")
    assert any(line.startswith("error: ") and cause in line for line in shown.splitlines())
    log = (tmp_path / "why").read_text()
    assert cause in log
    assert log.endswith(f"\nexit code {code}\n")


def test_accelerate_launch_names_the_cause(tmp_path: Path) -> None:
    launch = [*ACCELERATE, "--main_process_port", str(free_port())]
    module = "accelerate.commands.accelerate_cli"
    done = commands.fmstune(*launch, *TRAIN, "--set", "training.lerning_rate=1", cwd=tmp_path, module=module)
    assert done.returncode == 1
    assert "error: --set: there is no setting training.lerning_rate." in done.stderr


def test_a_signal_to_torchrun_saves_a_checkpoint(tmp_path: Path) -> None:
    save = ["--set", "training.save_strategy=no"]
    launcher = start([*TRAIN, *with_callback("Slow"), *save], tmp_path)
    processes = pids(tmp_path)
    launcher.send_signal(signal.SIGTERM)
    _, shown = launcher.communicate()
    assert launcher.returncode != 0
    assert "saving a checkpoint after this step" in shown
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1
    assert have_ended(processes)


def test_torchrun_of_other_projects_loads_nothing_of_fmstune() -> None:
    ours = [
        entry
        for entry in importlib.metadata.entry_points(group="torchrun.handlers")
        if entry.value.startswith("fmstune")
    ]
    assert ours == []
