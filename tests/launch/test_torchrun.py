"""Plain torchrun and accelerate: the cause is the last line, and the exit code says what kind it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fmstune.launch import torchrun_hook as torchrun
from tests.cli.test_train import FAST, settings
from tests.launch.test_launchers import ACCELERATE, free_port
from tests.launch.test_ranks_end import CALLBACKS, CURSED, gone, pids, with_callback
from tests.support.installed import installed

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TRAIN = ["-m", "fmstune", "train", "--output-dir", "out", *FAST]
LOG = ["--set", "run.termination_log=why"]


@pytest.fixture(autouse=True)
def _callbacks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CALLBACKS)


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    environment = settings(OMP_NUM_THREADS="1", PYTHONPATH=installed(cwd))
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def ended(command: list[str], cwd: Path) -> tuple[int, list[str]]:
    """The exit code, and what a person has read."""
    process = start(command, cwd)
    _, shown = process.communicate(timeout=180)
    return process.returncode, shown.splitlines()


@pytest.mark.parametrize(
    ("wrong", "code", "cause"),
    [
        (["--set", "training.lerning_rate=1"], 2, "--set: there is no setting training.lerning_rate."),
        (["--model", "demo", "--data", "no.jsonl"], 2, "data.train = 'no.jsonl': there is no such file."),
        (with_callback("Fails"), 1, CURSED),
        (with_callback("Dies"), 1, "the process of rank 1 was ended by SIGKILL."),
    ],
    ids=["setting", "data", "training", "killed"],
)
def test_torchrun_ends_with_the_cause_and_its_code(
    wrong: list[str], code: int, cause: str, tmp_path: Path
) -> None:
    returned, shown = ended([*TORCHRUN, *TRAIN, *wrong, *LOG], tmp_path)
    assert returned == code, shown
    assert cause in shown[-1]
    assert [line for line in shown if line.startswith("error: ")] == shown[-1:]
    assert "Traceback" not in "".join(shown)
    told = shown[-1].removeprefix("error: ")
    assert (tmp_path / "why").read_text() == f"{told}\nexit code {code}\n"


def test_accelerate_launch_ends_with_the_cause_and_its_code(tmp_path: Path) -> None:
    launch = [*ACCELERATE, "--num_processes", "2", "--main_process_port", free_port()]
    returned, shown = ended([*launch, *TRAIN, "--set", "training.lerning_rate=1"], tmp_path)
    assert returned == 2, shown
    assert [line for line in shown if line.startswith("error: ")] == shown[-1:]


def test_a_signal_to_torchrun_saves_a_checkpoint(tmp_path: Path) -> None:
    save = ["--set", "training.save_strategy=no"]
    launcher = start([*TORCHRUN, *TRAIN, *with_callback("Slow"), *save], tmp_path)
    processes = pids(tmp_path)
    launcher.terminate()
    _, shown = launcher.communicate(timeout=120)
    assert launcher.returncode == 143, shown
    assert shown.splitlines()[-1] == "error: interrupted by SIGTERM."
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1
    assert gone(processes)


def test_a_second_ctrl_c_to_torchrun_leaves_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    launcher = start([*TORCHRUN, *TRAIN, *with_callback("Slow")], tmp_path)
    processes = pids(tmp_path)
    launcher.send_signal(signal.SIGINT)
    assert launcher.stderr is not None
    while "Ctrl-C again" not in launcher.stderr.readline():
        assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    _, shown = launcher.communicate(timeout=120)
    assert launcher.returncode == 130
    assert shown.splitlines()[-1] == "error: interrupted by SIGINT."
    assert gone(processes)


def test_what_torchrun_starts_besides_fmstune_ends_as_it_did(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import os, sys\n"
        "print('launched' if 'FMSTUNE_LAUNCHED' in os.environ else 'untouched', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    returned, shown = ended([*TORCHRUN, "-m", "other", "fmstune"], tmp_path)
    assert returned == 1
    assert shown.count("untouched") == 2
    text = "\n".join(shown)
    assert "ChildFailedError" in text
    assert "Root Cause (first observed failure):" in text
    assert "failed (exitcode: 3) local_rank" in text


def test_asked_for_as_a_backend_it_says_that_it_is_none(tmp_path: Path) -> None:
    backend = ["--rdzv-backend", "fmstune", "--rdzv-endpoint", "localhost:0"]
    returned, shown = ended([*TORCHRUN[:3], *backend, *TRAIN], tmp_path)
    assert returned == 2
    assert shown[-1].startswith("error: fmstune is no rendezvous backend")


def test_a_surprise_leaves_the_launcher_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals can be listened to in the main thread alone; nothing is changed where that fails."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    monkeypatch.setattr(sys, "argv", ["/bin/torchrun", "-m", "fmstune", "train"])
    before, environment, found = sys.excepthook, dict(os.environ), []
    thread = threading.Thread(target=lambda: found.append(torchrun.handler()))
    thread.start()
    thread.join()
    assert found == [torchrun._no_backend]
    assert sys.excepthook is before
    assert dict(os.environ) == environment


@pytest.mark.parametrize(
    ("launcher", "line", "of_fmstune"),
    [
        ("torchrun", "-m fmstune train --lora", "fmstune train --lora"),
        ("torchrun", "--module --nproc-per-node 2 fmstune train", "fmstune train"),
        ("torchrun", "--standalone --nproc_per_node=2 -m fmstune", "fmstune"),
        ("torch.distributed.run", "--nnodes 2 --rdzv-id x -m fmstune train", "fmstune train"),
        ("torchrun", "--nproc-per-node 2 /opt/bin/fmstune train", "/opt/bin/fmstune train"),
        ("torchrun", "--no-python fmstune train", "fmstune train"),
        ("accelerate", "launch --multi_gpu --num_processes 2 -m fmstune train", "fmstune train"),
        ("accelerate-launch", "--use_fsdp -m fmstune train", "fmstune train"),
        ("torchrun", "train.py -m fmstune", None),
        ("torchrun", "-m other fmstune", None),
        ("torchrun", "--role fmstune train.py", None),
        ("torchrun", "--log-dir runs/fmstune -m other train", None),
        ("torchrun", "--no-python bash -c fmstune", None),
        ("torchrun", "", None),
        ("accelerate", "test fmstune", None),
        ("accelerate", "launch train.py fmstune", None),
        ("fmstune", "-m fmstune train --nproc 2", None),
        ("pytest", "-m fmstune", None),
    ],
)
def test_only_a_launcher_that_runs_fmstune_is_changed(
    launcher: str, line: str, of_fmstune: str | None
) -> None:
    found = torchrun.launched(launcher, line.split())
    assert found == (of_fmstune.split() if of_fmstune else None)
