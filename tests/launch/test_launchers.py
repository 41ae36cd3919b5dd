"""Other ways to several processes: accelerate, and torchrun's variables for several machines."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.cli.test_train import FAST, events, settings, start
from tests.launch.test_ranks_end import CALLBACKS, CURSED, with_callback
from tests.support.end_to_end import journal_points

ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_accelerate_launch_trains_one_model_in_two_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [*ACCELERATE, "--num_processes", "2", "--main_process_port", free_port(), "-m", "fmstune", "train",
         "--output-dir", "out", "--max-steps", "3", *FAST],
        cwd=tmp_path, env=settings(OMP_NUM_THREADS="1"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("saved    out") == 1
    assert len([key for key in journal_points(tmp_path / "out") if key[:2] == ("train", "loss")]) == 3
    assert events(tmp_path / "out")[-1].status == "finished"


def test_machines_meet_by_torchruns_variables_and_the_one_that_fails_names_the_cause(tmp_path: Path) -> None:
    """As Kubeflow's operator sets them, which sets RANK too, to the number of the machine."""
    (tmp_path / "mine.py").write_text(CALLBACKS)
    where = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": free_port()}
    common = ["--nproc", "1", "--output-dir", "out", *FAST, *with_callback("Fails")]
    machines = []
    for number in ("0", "1"):
        log = ["--set", f"run.termination_log=why-{number}"]
        environment = {**where, "PET_NODE_RANK": number, "RANK": number, "WORLD_SIZE": "2"}
        machines.append(start(*common, *log, cwd=tmp_path, OMP_NUM_THREADS="1", **environment))
    shown = [machine.communicate(timeout=180)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1]
    assert shown[1].splitlines()[-1] == f"error: {CURSED}"
    assert (tmp_path / "why-1").read_text() == f"{CURSED}\nexit code 1\n"
    assert "another process of this run has ended" in shown[0].splitlines()[-1]
    assert (tmp_path / "why-0").read_text().startswith("another process of this run has ended")


def test_a_machine_that_waits_for_another_can_be_told_to_stop(tmp_path: Path) -> None:
    where = {"PET_NNODES": "2", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ID": "x"}
    port = free_port()
    waiting = start("--nproc", "1", cwd=tmp_path, PET_RDZV_ENDPOINT=f"127.0.0.1:{port}", **where)
    while True:  # until it holds the meeting place, which is what it does before it waits
        with socket.socket() as there:
            if there.connect_ex(("127.0.0.1", int(port))) == 0:
                break
        assert waiting.poll() is None
    waiting.send_signal(signal.SIGTERM)
    _, shown = waiting.communicate(timeout=60)
    assert waiting.returncode == 143
    assert shown == "error: interrupted by SIGTERM.\n"
