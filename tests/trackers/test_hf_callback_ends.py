"""In a user's own process a run is closed with its true status, however the process ends."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.aim_servers import provide_database
from tests.support.commands import fmstune, start
from tests.support.user_trainer import TRACKERS, seen_by_aim, seen_in_file

_SCRIPT = """
import sys
from fmstune import get_tracker
from fmstune.trackers.standalone import note_training
name, options, how = sys.argv[1], eval(sys.argv[2]), sys.argv[3]
tracker = get_tracker(name, **options)
tracker.track(0.25, "before", "mine", step=0)
if how == "in a training":
    note_training(tracker, going=True)
if how == "closed":
    tracker.close("finished")
if how == "raises":
    raise ValueError("no")
if how == "handled":
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
    tracker.close("finished")
    tracker.track(0.25, "before", "mine", step=0)
if how == "forks":
    import multiprocessing, signal, time
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    assert child.exitcode == -signal.SIGTERM
if how == "hangs":
    import time
    tracker.close = lambda *_: time.sleep(600)
    from fmstune.trackers import terminated
    terminated._SECONDS_TO_CLOSE = 0.1
if how not in ("ends", "closed", "raises", "in a training", "forks"):
    print("waiting", flush=True)
    import time
    while True:
        time.sleep(1)
"""

SIGNALS = {
    "waits": signal.SIGINT, "terminated": signal.SIGTERM, "hung up": signal.SIGHUP, "handled": signal.SIGTERM,
    "hangs": signal.SIGTERM, "killed": signal.SIGKILL,
}  # fmt: skip


def run_script(folder: Path, name: str, how: str) -> int:
    script = folder / "script.py"
    script.write_text(_SCRIPT)
    provide_database()
    arguments = (name, repr(TRACKERS[name].options(folder)), how)
    with start(*arguments, cwd=folder, module=str(script), sdks=True, stderr=subprocess.DEVNULL) as process:
        if how in SIGNALS:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(SIGNALS[how])
        return process.wait()


@pytest.mark.parametrize(
    ("name", "how", "status"),
    [
        ("aim", "raises", "failed"),
        ("wandb", "raises", "failed"),
        ("mlflow", "raises", "failed"),
        ("tensorboard", "raises", "failed"),
        ("file", "raises", "failed"),
        ("file", "ends", "finished"),
        ("file", "closed", "finished"),
        ("file", "in a training", "failed"),
        ("file", "waits", "interrupted"),
        ("aim", "terminated", "interrupted"),
        ("wandb", "terminated", "interrupted"),
        ("mlflow", "terminated", "interrupted"),
        ("tensorboard", "terminated", "interrupted"),
        ("file", "hung up", "interrupted"),
        ("file", "forks", "finished"),
        ("aim", "killed", None),  # but it is listed
    ],
)
def test_the_end_of_the_process_closes_the_run_with_its_status(
    name: str, how: str, status: str | None, tmp_path: Path
) -> None:
    code = run_script(tmp_path, name, how)
    (run,) = TRACKERS[name].seen(tmp_path)
    assert run.status == status
    assert run.values["mine", "before"] == [0.25]
    assert (code == 0) == (how in ("ends", "closed", "in a training", "forks"))
    if how in ("terminated", "hung up"):
        assert code == -SIGNALS[how]


def test_the_users_signal_handler_stays_installed(tmp_path: Path) -> None:
    assert run_script(tmp_path, "file", "handled") == 9
    assert [run.status for run in seen_in_file(tmp_path)] == ["finished", "finished"]


def test_a_hanging_tracker_does_not_keep_a_terminated_process_alive(tmp_path: Path) -> None:
    assert run_script(tmp_path, "file", "hangs") == -signal.SIGTERM


_TERMINATED_WHILE_CLOSING = """
import os, signal, sys, time
from fmstune import Tracker
class Slow(Tracker):
    def open(self, start):
        self.ended = False
        return super().open(start)
    def track(self, metric, name, stage=None, *, step=None):
        self.open_alone()
    def close(self, status, error=None):
        if self.ended:
            return
        self.ended = True
        if self.name == "first":
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        print(self.name, "closed", flush=True)
trackers = [Slow("second"), Slow("first")]  # at the exit, the last one is closed first
for tracker in trackers:
    tracker.track(0.5, "loss")
if sys.argv[1] == "early":
    tracker.close("finished")
    time.sleep(60)
"""


@pytest.mark.parametrize("when", ["early", "at the exit"])
def test_a_signal_while_a_run_is_being_closed_lets_all_runs_be_closed(when: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_TERMINATED_WHILE_CLOSING)
    done = fmstune(when, cwd=tmp_path, module=str(tmp_path / "script.py"))
    assert sorted(done.stdout.splitlines()) == ["first closed", "second closed"]
    assert done.returncode in ((-signal.SIGTERM,) if when == "early" else (-signal.SIGTERM, 0))


def test_an_aim_run_is_listed_with_its_values_even_if_the_process_is_killed(tmp_path: Path) -> None:
    script = """
import os
from types import SimpleNamespace
from fmstune import get_tracker
callback = get_tracker("aim", repo=".").get_hf_callback()
args = SimpleNamespace(run_name="by-hand", output_dir="out", to_sanitized_dict=dict)
state = SimpleNamespace(is_world_process_zero=True, global_step=0, epoch=0.5, log_history=[])
callback.on_train_begin(args, state, None)
for step in (1, 2, 3):
    state.global_step = step
    callback.on_log(args, state, None, {"loss": step / 2})
callback.on_log(args, state, None, {"eval_loss": 0.25})
callback.on_log(args, state, None, {"loss": 2.0, "eval_loss": 0.5})
os.kill(os.getpid(), 9)
"""
    provide_database()
    (tmp_path / "script.py").write_text(script)
    assert fmstune(cwd=tmp_path, module=str(tmp_path / "script.py")).returncode == -9
    (run,) = seen_by_aim(tmp_path)
    assert (run.name, run.status) == ("by-hand", None)
    assert sorted(run.values["train", "loss"]) == [0.5, 1.0, 1.5, 2.0]
    assert sorted(run.values["eval", "loss"]) == [0.25, 0.5]
