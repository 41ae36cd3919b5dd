"""Plain torchrun and accelerate: they end as they always do, with fmstune's cause in their table."""

from __future__ import annotations

import importlib.metadata
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_train import FAST, settings
from tests.launch.test_launchers import ACCELERATE, free_port
from tests.launch.test_ranks_end import CALLBACKS, CURSED, gone, pids, with_callback

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TRAIN = ["-m", "fmstune", "train", "--output-dir", "out", *FAST]
LOG = ["--set", "run.termination_log=why"]


@pytest.fixture(autouse=True)
def _callbacks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CALLBACKS)


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    environment = settings(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def ended(command: list[str], cwd: Path) -> tuple[int, str]:
    """The exit code, and what a person has read."""
    process = start(command, cwd)
    _, shown = process.communicate(timeout=180)
    return process.returncode, shown


@pytest.mark.parametrize(
    ("wrong", "code", "cause"),
    [
        (["--model", "demo", "--data", "no.jsonl"], 2, "data.train = 'no.jsonl': there is no such file."),
        (with_callback("Fails"), 1, CURSED),
    ],
    ids=["data", "training"],
)
def test_the_cause_is_the_root_cause_of_torchruns_table_and_in_the_termination_log(
    wrong: list[str], code: int, cause: str, tmp_path: Path
) -> None:
    returned, shown = ended([*TORCHRUN, *TRAIN, *wrong, *LOG], tmp_path)
    assert returned == 1
    root = shown.partition("Root Cause")[2]
    assert cause in root
    assert f"(exitcode: {code})" in root.replace("exitcode  : ", "(exitcode: ").replace(" (pid", ") (pid")
    assert any(line.startswith("error: ") and cause in line for line in shown.splitlines())
    log = (tmp_path / "why").read_text()
    assert cause in log
    assert log.endswith(f"\nexit code {code}\n")


def test_accelerate_launch_names_the_cause(tmp_path: Path) -> None:
    launch = [*ACCELERATE, "--num_processes", "2", "--main_process_port", free_port()]
    returned, shown = ended([*launch, *TRAIN, "--set", "training.lerning_rate=1"], tmp_path)
    assert returned == 1
    assert "error: --set: there is no setting training.lerning_rate." in shown


def test_a_signal_to_torchrun_saves_a_checkpoint(tmp_path: Path) -> None:
    save = ["--set", "training.save_strategy=no"]
    launcher = start([*TORCHRUN, *TRAIN, *with_callback("Slow"), *save], tmp_path)
    processes = pids(tmp_path)
    launcher.send_signal(signal.SIGTERM)
    _, shown = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "saving a checkpoint after this step" in shown
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1
    assert gone(processes)


def test_nothing_of_fmstune_is_loaded_in_the_torchrun_of_other_projects() -> None:
    ours = [
        entry
        for entry in importlib.metadata.entry_points(group="torchrun.handlers")
        if entry.value.startswith("fmstune")
    ]
    assert ours == []
