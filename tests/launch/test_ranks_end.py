"""Several processes that fail: no rank is left behind, and the first to fail is the one reported."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import distributed

from fmstune.errors import Interrupted
from fmstune.launch import rank as ranks
from fmstune.launch import signals
from fmstune.launch.rank import is_training, process_group_left, report_training
from tests.support.commands import ROOT, fmstune, start
from tests.support.ranks import CALLBACKS, CURSED, TWO, have_ended, pids, run_ranks, slow_rank, with_callback
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def _callbacks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CALLBACKS)


def test_the_cause_of_a_failing_rank_is_the_last_line_and_its_exit_code_that_of_the_run(
    tmp_path: Path,
) -> None:
    log = ["--set", "run.termination_log=why"]
    done = fmstune("train", *TWO, *with_callback("Fails"), *log, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {CURSED}"
    assert "Traceback" not in done.stderr
    assert (tmp_path / "why").read_text() == f"{CURSED}\nexit code 1\n"
    last = json.loads((tmp_path / "out" / "tracking" / "journal.jsonl").read_text().splitlines()[-1])
    assert (last["status"], last["error"]) == ("failed", CURSED), "trackers see the same"


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    done = fmstune("train", *TWO, *with_callback("Dies"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the process of rank 1 was killed by SIGKILL.")


def test_a_run_that_lost_a_killed_rank_has_failed_though_torchrun_asks_the_others_to_stop(
    tmp_path: Path,
) -> None:
    done = fmstune("train", *TWO, *with_callback("DiesLate"), cwd=tmp_path)
    assert done.stderr.splitlines()[-1].startswith("error: the process of rank 1 was killed by SIGKILL.")
    last = json.loads((tmp_path / "out" / "tracking" / "journal.jsonl").read_text().splitlines()[-1])
    assert last["status"] == "failed"


def test_a_rank_that_ends_without_a_message_is_named_with_its_exit_code(tmp_path: Path) -> None:
    done = fmstune("train", *TWO, *with_callback("Exits"), cwd=tmp_path)
    assert done.returncode == 1
    last = "error: the process of rank 1 exited with code 7, without reporting a cause."
    assert done.stderr.splitlines()[-1] == last


def test_a_rank_that_raises_system_exit_reports_it_to_the_launcher_and_the_journal(tmp_path: Path) -> None:
    done = fmstune("train", *TWO, *with_callback("Quits"), cwd=tmp_path)
    said = "rank 1 ended with exit code 7: SystemExit"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"error: {said}")
    last = json.loads((tmp_path / "out" / "tracking" / "journal.jsonl").read_text().splitlines()[-1])
    assert (last["status"], last["error"]) == ("failed", said)


def test_all_ranks_stop_when_a_callback_stops_one(tmp_path: Path) -> None:
    arguments = ["train", *TWO[2:], *with_callback("Stops")]
    done, other = run_ranks(2, *arguments, cwd=tmp_path)
    assert (done.returncode, other.returncode) == (0, 0), done.stderr
    assert "2 steps" in done.stderr


def test_what_a_callback_asks_of_one_rank_all_do(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(6)))
    data = ["--data", "rows.jsonl", "--eval-data", "rows.jsonl", "--batch-size", "1"]
    rare = ["logging_steps=5", "save_strategy=no", "eval_strategy=no"]
    settings = [part for each in rare for part in ("--set", f"training.{each}")]
    alone = [*with_callback("Alone"), "--model", "demo", "--output-dir", "out", "--tracker", "none"]
    done, other = run_ranks(2, "train", *data, *settings, *alone, cwd=tmp_path)
    assert (done.returncode, other.returncode) == (0, 0), done.stderr
    saved = sorted(each.name for each in (tmp_path / "out").glob("checkpoint-*"))
    assert saved == ["checkpoint-1", "checkpoint-3"]
    shown = [" ".join(line.split()[:2]) for line in done.stderr.splitlines() if "/400 " in line]
    assert shown == ["step 2/400", "eval 3/400", "step 5/400"]
    assert "5 steps" in done.stderr


def test_a_checkpoint_is_saved_once_the_slowest_rank_has_written_its_part(tmp_path: Path) -> None:
    save = ["--set", "training.save_strategy=steps", "--set", "training.save_steps=1"]
    once = [*with_callback("ReadsLate"), *save, "--max-steps", "1"]
    done, other = run_ranks(2, "train", *TWO[2:], *once, cwd=tmp_path)
    assert (done.returncode, other.returncode) == (0, 0), done.stderr
    for rank in (0, 1):
        read = (tmp_path / f"read-by-{rank}").read_text().split()
        assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= set(read)


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    trainer = start("train", *TWO, *with_callback("Slow"), cwd=tmp_path)
    processes = pids(tmp_path)
    trainer.send_signal(signal.SIGINT)
    assert trainer.stderr is not None
    shown = ""
    while "Ctrl-C again" not in shown:
        shown = trainer.stderr.readline()
    trainer.send_signal(signal.SIGINT)
    _, shown = trainer.communicate()
    assert trainer.returncode == 130
    assert shown.splitlines()[-1] == "error: interrupted by SIGINT."
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert have_ended(processes)


def test_a_run_whose_other_rank_is_interrupted_before_it_trains_is_interrupted(tmp_path: Path) -> None:
    trainer = start("train", *TWO, *with_callback("Late"), cwd=tmp_path, TMPDIR=str(tmp_path))
    wait_for(lambda: is_training(tmp_path))
    trainer.terminate()
    _, shown = trainer.communicate()
    assert (trainer.returncode, shown.splitlines()[-1]) == (143, "error: interrupted by SIGTERM.")
    last = json.loads((tmp_path / "out" / "tracking" / "journal.jsonl").read_text().splitlines()[-1])
    assert last["status"] == "interrupted"


def test_ranks_whose_launcher_is_killed_save_a_checkpoint_and_end(tmp_path: Path) -> None:
    trainer = start("train", *TWO, *with_callback("Slow"), "--set", "training.save_strategy=no", cwd=tmp_path)
    processes = pids(tmp_path)
    trainer.kill()
    trainer.communicate()
    wait_for(lambda: have_ended(processes))
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1


def write_cause(directory: Path, local_rank: int, **cause: Any) -> Path:
    path = directory / str(local_rank) / "error.json"
    path.parent.mkdir()
    cause = {"message": "x", "exit_code": 1, "expected": True, "time": 0.0, "local_rank": local_rank, **cause}
    path.write_text(json.dumps({"message": {"message": "x", "extraInfo": {"fmstune": cause}}}))
    return path


def test_the_first_rank_to_fail_is_the_cause_and_the_others_report_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, early = write_cause(tmp_path, 0, time=10.2), write_cause(tmp_path, 1, time=10.1)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "error.json").write_text('{"message": "of a program that is not fmstune"}')
    assert [cause.local_rank for cause in ranks.reported_causes(tmp_path)] == [1, 0]
    for path, rank, follows in ((late, "0", True), (early, "1", False)):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert ranks.is_consequence() is follows


def test_torchrun_reports_the_first_failure_as_the_cause_even_within_one_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = {}
    for rank in ("1", "0"):
        path = tmp_path / rank / "error.json"
        path.parent.mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setattr(ranks.time, "time", lambda: 100.5)
        assert ranks.report_cause(f"rank {rank}", 1, expected=True)
        noted[rank] = int(json.loads(path.read_text())["message"]["extraInfo"]["timestamp"])
    assert noted["1"] < noted["0"]
    assert ranks.failure_of_another() == "rank 1"


@pytest.mark.parametrize(
    ("stopped", "left"),
    [(None, True), (Interrupted(signal.SIGTERM), True), (RuntimeError("a failure"), False)],
)
def test_a_finished_or_interrupted_rank_leaves_the_group_before_its_process_ends(
    stopped: BaseException | None, left: bool
) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with contextlib.suppress(Interrupted, RuntimeError), process_group_left():
            if stopped is not None:
                raise stopped
        assert distributed.is_initialized() != left
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def test_without_a_group_there_is_nothing_to_leave() -> None:
    with process_group_left():
        pass
    assert not distributed.is_initialized()


def test_a_second_signal_is_not_sent_before_the_first_is_handled() -> None:
    """The kernel merges two pending signals of the same kind."""
    with slow_rank() as rank:
        rank.send_signal(signal.SIGINT)
        timer = threading.Timer(0.2, lambda: rank.communicate("\n"))
        timer.start()
        signals._wait_until_handled(signal.SIGINT, [psutil.Process(rank.pid)])
        rank.send_signal(signal.SIGINT)
        timer.join()
    assert rank.returncode == 0


LAUNCHER = """
import contextlib, signal
from torch.distributed.elastic.multiprocessing.api import SignalException
from pathlib import Path
from fmstune.launch.signals import listen
from tests.support.ranks import slow_rank
rank = slow_rank()
listen(Path('nowhere'))
with contextlib.suppress(SignalException):
    signal.raise_signal(signal.SIGINT)
signal.raise_signal(signal.SIGINT)
rank.send_signal(signal.SIGINT)  # torchrun's loop reaches the rank only now
rank.communicate("\\n")
"""


DEAF = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
)


@pytest.mark.parametrize("trains", [False, True])
def test_a_rank_that_cannot_handle_a_signal_is_killed_unless_it_trains(tmp_path: Path, trains: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as rank:
        assert rank.stdout is not None
        rank.stdout.readline()
        if trains:
            (tmp_path / "attempt_0" / "0").mkdir(parents=True)
            (tmp_path / "attempt_0" / "0" / "training").touch()
        signals.end_if_stuck([psutil.Process(rank.pid)], tmp_path, seconds=0.1)
        if trains:
            assert rank.poll() is None
            rank.kill()
        assert rank.wait() == -signal.SIGKILL


def test_a_rank_tells_its_launcher_that_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    (tmp_path / "0").mkdir()
    assert not is_training(tmp_path)
    report_training()
    assert is_training(tmp_path)


def test_a_second_signal_does_not_overtake_the_first() -> None:
    """It may arrive while torchrun passes on the first, rank by rank."""
    done = subprocess.run([sys.executable, "-c", LAUNCHER], cwd=ROOT, timeout=200)
    assert done.returncode == 0
