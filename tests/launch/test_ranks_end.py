"""Several processes that end badly: no rank is left behind, and the first to fail is the one named."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import distributed

from fmstune.launch import rank as ranks
from fmstune.launch.rank import leaving_in_order
from fmstune.training.callbacks.stopping import Interrupted
from tests.cli.test_train import fmstune, start
from tests.delivery.test_shippers import wait_for
from tests.launch.test_launch import TWO

CALLBACKS = """\
import os, pathlib, signal, time
from transformers import TrainerCallback

class SecondRank(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 2:
            self.fail()

class Fails(SecondRank):
    def fail(self):
        raise ValueError("the second step is cursed")

class Dies(SecondRank):
    def fail(self):
        os.kill(os.getpid(), signal.SIGKILL)

class Exits(SecondRank):
    def fail(self):
        os._exit(7)

class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = args.process_index == 1 and state.global_step == 2

class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        pathlib.Path(f"rank-{args.process_index}-{os.getpid()}").touch()
        if pathlib.Path("slow").exists():
            time.sleep(300)
"""
CURSED = "ValueError: the second step is cursed"


@pytest.fixture(autouse=True)
def _callbacks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CALLBACKS)


def with_callback(name: str) -> list[str]:
    return ["--max-steps", "400", "--set", f'run.callbacks=["mine:{name}"]']


def test_the_cause_of_a_rank_is_the_last_line_and_its_code_the_exit_code(tmp_path: Path) -> None:
    log = ["--set", "run.termination_log=why"]
    done = fmstune("train", *TWO, *with_callback("Fails"), *log, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {CURSED}"
    assert "Traceback" not in done.stderr
    assert (tmp_path / "why").read_text() == f"{CURSED}\nexit code 1\n"
    last = json.loads((tmp_path / "out" / "tracking" / "journal.jsonl").read_text().splitlines()[-1])
    assert (last["status"], last["error"]) == ("failed", CURSED), "and so it is for trackers"


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    done = fmstune("train", *TWO, *with_callback("Dies"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the process of rank 1 was ended by SIGKILL.")


def test_a_rank_that_ends_without_a_word_is_named_with_its_exit_code(tmp_path: Path) -> None:
    done = fmstune("train", *TWO, *with_callback("Exits"), cwd=tmp_path)
    assert done.returncode == 1
    last = "error: the process of rank 1 ended with exit code 7, and did not say why."
    assert done.stderr.splitlines()[-1] == last


def test_all_ranks_stop_when_a_callback_stops_one(tmp_path: Path) -> None:
    done = fmstune("train", *TWO, *with_callback("Stops"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 steps" in done.stderr


def pids(directory: Path) -> list[int]:
    """The process of each rank, once both are at work."""
    wait_for(lambda: len(list(directory.glob("rank-*"))) == 2, 120)
    return [int(file.name.rpartition("-")[2]) for file in directory.glob("rank-*")]


def gone(processes: list[int]) -> bool:
    running = []
    for pid in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            running.append(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return not any(running)


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    trainer = start(*TWO, *with_callback("Slow"), cwd=tmp_path)
    processes = pids(tmp_path)
    trainer.send_signal(signal.SIGINT)
    assert trainer.stderr is not None
    shown = ""
    while "Ctrl-C again" not in shown:
        shown = trainer.stderr.readline()
    trainer.send_signal(signal.SIGINT)
    _, shown = trainer.communicate(timeout=120)
    assert trainer.returncode == 130
    assert shown.splitlines()[-1] == "error: interrupted by SIGINT."
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert gone(processes)


def test_ranks_whose_launcher_is_killed_save_a_checkpoint_and_end(tmp_path: Path) -> None:
    trainer = start(*TWO, *with_callback("Slow"), "--set", "training.save_strategy=no", cwd=tmp_path)
    processes = pids(tmp_path)
    trainer.kill()
    trainer.communicate(timeout=120)
    wait_for(lambda: gone(processes), 120)
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1


def told(directory: Path, local_rank: int, **cause: Any) -> Path:
    path = directory / str(local_rank) / "error.json"
    path.parent.mkdir()
    cause = {"message": "x", "exit_code": 1, "expected": True, "time": 0.0, "local_rank": local_rank, **cause}
    path.write_text(json.dumps({"message": {"message": "x", "extraInfo": {"fmstune": cause}}}))
    return path


def test_the_first_rank_to_fail_is_the_cause_and_the_others_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, early = told(tmp_path, 0, time=10.2), told(tmp_path, 1, time=10.1)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "error.json").write_text('{"message": "of a program that is not fmstune"}')
    assert [cause.local_rank for cause in ranks.reported_causes(tmp_path)] == [1, 0]
    for path, rank, follows in ((late, "0", True), (early, "1", False)):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert ranks.follows_another() is follows


@pytest.mark.parametrize(
    ("stopped", "left"),
    [(None, True), (Interrupted(signal.SIGTERM), True), (RuntimeError("a failure"), False)],
)
def test_who_is_done_or_interrupted_leaves_the_group_before_the_process_ends(
    stopped: BaseException | None, left: bool
) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with contextlib.suppress(Interrupted, RuntimeError), leaving_in_order():
            if stopped is not None:
                raise stopped
        assert distributed.is_initialized() != left
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def test_without_a_group_there_is_nothing_to_leave() -> None:
    with leaving_in_order():
        pass
    assert not distributed.is_initialized()
