"""Other ways to start several processes: accelerate, and torchrun's variables for several machines."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from tests.support.aim_servers import free_port
from tests.support.commands import FAST, fmstune, start
from tests.support.end_to_end import journal_points
from tests.support.journals import events
from tests.support.ranks import ACCELERATE, CALLBACKS, CURSED, with_callback


def test_accelerate_launch_trains_one_model_in_two_processes(tmp_path: Path) -> None:
    launch = [*ACCELERATE, "--main_process_port", str(free_port()), "-m", "fmstune"]
    arguments = ["train", "--output-dir", "out", "--max-steps", "3", *FAST]
    done = fmstune(*launch, *arguments, cwd=tmp_path, module="accelerate.commands.accelerate_cli")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("saved    out") == 1
    assert len([key for key in journal_points(tmp_path / "out") if key[:2] == ("train", "loss")]) == 3
    assert events(tmp_path / "out")[-1].status == "finished"


def test_machines_rendezvous_by_torchruns_variables_and_the_failing_one_names_the_cause(
    tmp_path: Path,
) -> None:
    """As Kubeflow's operator sets them; it also sets RANK, to the number of the machine."""
    (tmp_path / "mine.py").write_text(CALLBACKS)
    where = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}
    common = ["--nproc", "1", "--output-dir", "out", *FAST, *with_callback("Fails")]
    machines = []
    for number in ("0", "1"):
        log = ["--set", f"run.termination_log=why-{number}"]
        environment = {**where, "PET_NODE_RANK": number, "RANK": number, "WORLD_SIZE": "2"}
        machines.append(start("train", *common, *log, cwd=tmp_path, **environment))
    shown = [machine.communicate()[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 1]
    assert shown[1].splitlines()[-1] == f"error: {CURSED}"
    assert (tmp_path / "why-1").read_text() == f"{CURSED}\nexit code 1\n"
    assert "another process of this run exited" in shown[0].splitlines()[-1]
    assert (tmp_path / "why-0").read_text().startswith("another process of this run exited")


def test_a_machine_that_waits_for_another_can_be_stopped(tmp_path: Path) -> None:
    where = {"PET_NNODES": "2", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ID": "x"}
    port = free_port()
    waiting = start("train", "--nproc", "1", cwd=tmp_path, PET_RDZV_ENDPOINT=f"127.0.0.1:{port}", **where)
    while True:  # until it hosts the rendezvous store, just before it waits
        with socket.socket() as there:
            if there.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert waiting.poll() is None
    waiting.send_signal(signal.SIGTERM)
    _, shown = waiting.communicate()
    assert waiting.returncode == 143
    assert shown == "error: interrupted by SIGTERM.\n"
