"""The live display of a run: true numbers of its journal, at any width, without affecting the run."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fmstune.cli.main import main
from fmstune.console import moved, phase, watched_by
from fmstune.delivery.ledger import Ledger
from fmstune.report.live import LiveConsole
from fmstune.report.live_state import Delivered, Follower, LiveState
from fmstune.report.live_view import drawn
from fmstune.trackers.records import MetricPoint
from tests.support.commands import FAST, fmstune
from tests.support.journals import journal_path
from tests.support.made_runs import end_run, make_run, start_run, with_settings
from tests.support.terminals import in_terminal
from tests.support.tuned import weights


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)


def test_a_display_follows_the_journal_as_it_grows() -> None:
    recorder = start_run(Path("a"))
    state, follower = LiveState(), Follower(Path("a"))
    recorder.set_params(with_settings({"training.max_steps": 40}), "config")
    follower.update(state)
    assert (state.steps, state.title) == (40, "org/tiny-chat · sft · chats.jsonl")
    for step in (10, 20):
        recorder.track_point(MetricPoint({"loss": 3.0 / step, "grad_norm": 1.5}, "train", step, step / 20))
        follower.update(state)
        assert state.losses[-1] == (step, 3.0 / step)
    recorder.track(1.25, "loss", "eval", step=20)
    recorder.track_sample({"process_memory_mb": 512.0}, "system", 20)
    Ledger("aim", delivered=3, total=5, error="connection refused").save(Path("a"))
    follower.update(state)
    assert (state.epoch, state.eval_loss, state.memory_mb) == (1.0, 1.25, 512.0)
    assert state.deliveries == [Delivered("aim", 3, 5, "connection refused")]
    end_run(recorder)
    follower.update(state)
    assert state.status == "finished"


def test_a_display_shows_each_loss_once_although_the_journal_is_written_again() -> None:
    recorder = start_run(Path("a"))
    state, follower = LiveState(), Follower(Path("a"))
    for step in (1, 2):
        recorder.track_point(MetricPoint({"loss": 1.0 / step}, "train", step))
    assert len(follower.update(state)) == 2
    journal_path(Path("a")).unlink()
    recorder.track_point(MetricPoint({"loss": 0.25}, "train", 3))
    recorder.journal.tend()
    assert [event.step for event in follower.update(state)] == [3]
    assert state.losses == [(1, 1.0), (2, 0.5), (3, 0.25)]
    end_run(recorder)
    shutil.rmtree("a")
    another = start_run(Path("a"), "another")
    another.track_point(MetricPoint({"loss": 4.0}, "train", 1))
    assert [event.step for event in follower.update(state)] == [1]
    end_run(another)


def test_the_remaining_time_is_estimated_from_the_steps_of_this_session() -> None:
    state = LiveState()
    state.at_step(100, 200, now=50.0)  # a resumed run: its first 100 steps took no time in this session
    assert state.left is None
    state.at_step(110, 200, now=70.0)
    assert state.left == pytest.approx(180.0)
    state.at_step(200, 200, now=250.0)
    assert state.left == 0.0


@given(
    st.integers(1, 300),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30),
    st.integers(0, 50),
    st.text(max_size=80),
)
def test_a_display_fits_any_width_whatever_is_tracked(
    width: int, losses: list[float], step: int, trouble: str
) -> None:
    state = LiveState(title=trouble, phase="training", step=step, steps=50, status=None)
    state.losses = [(float(at), loss) for at, loss in enumerate(losses)]
    state.figures = {"lr": 1e-5, "tokens/s": 123456.0}
    state.deliveries = [Delivered("aim", 3, 1204, trouble)]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    text = drawn(state, width)
    for line in text.split("\n"):
        assert line.cell_len <= width
        assert "\x1b" not in line.plain
    console.print(text)


def test_the_current_activity_is_shown_from_any_depth_and_cleared_afterwards() -> None:
    out = LiveConsole(Console(file=io.StringIO(), force_terminal=True))
    with watched_by(out):
        phase("reading and tokenising data")
        moved(1200)
    phase("nothing")
    assert (out._state.phase, out._state.done, out._state.total) == (
        "reading and tokenising data",
        1200,
        None,
    )


def lines(seen: str) -> Iterator[str]:
    return (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in seen.replace("\r", "\n").split("\n"))


def test_a_run_on_a_terminal_has_a_display_and_bitwise_the_weights_of_a_plain_one() -> None:
    arguments = ["train", "--max-steps", "6", "--set", "resources.interval=0", *FAST, "--output-dir"]
    shown = [*lines(in_terminal([*arguments, "drawn"], "", term="xterm"))]
    assert any(re.match("[\u2800-\u28ff] [a-z]", line) for line in shown)  # the live display
    assert not any(line.startswith("step ") for line in shown)
    assert any(line.startswith("finished ──") for line in shown)
    plain = [*lines(in_terminal([*arguments, "plain", "--plain"], "", term="xterm"))]
    assert sum(line.startswith("step ") for line in plain) == 6
    assert not any("training  " in line for line in plain)
    assert weights("drawn") == weights("plain")


def test_with_json_standard_output_has_one_object_per_line(tmp_path: Path) -> None:
    done = fmstune("train", "--json", "--max-steps", "2", *FAST, "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    phases = [each["phase"] for each in told if each["kind"] == "phase"]
    assert phases == [
        "loading libraries", "loading the tokenizer", "reading and tokenising data", "loading the model",
        "building the trainer", "training", "saving a checkpoint", "training", "saving the model",
        "delivering",
    ]  # fmt: skip
    steps = [each for each in told if each["kind"] == "metrics"]
    assert [(each["stage"], each["step"], each["steps"]) for each in steps] == [
        ("train", 1, 2),
        ("train", 2, 2),
    ]
    assert steps[0]["values"]["loss"] > 1
    assert (told[-1]["kind"], told[-1]["status"]) == ("end", "finished")


def test_watching_a_finished_run_shows_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("a"), {1: 2.0, 2: 1.5}, eval_loss=1.75)
    with pytest.raises(SystemExit) as end:
        main(["runs", "watch", "a"])
    assert end.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["step     1/10  loss 2", "step     2/10  loss 1.5", "eval     2/10  loss 1.75"]
    assert "loss     2 → 1.5 (the best)" in shown


def test_a_loss_of_another_stage_is_not_shown_as_the_trainings(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = start_run(Path("a"))
    for stage, loss in (("teacher", 9.0), ("train", 2.0), ("eval", 3.0)):
        recorder.track(loss, "loss", stage, step=1)
    end_run(recorder)
    with pytest.raises(SystemExit):
        main(["runs", "watch", "a"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["step     1  loss 2", "eval     1  loss 3", "finished a"]
    # It has no settings, as an imported run, and so neither a model nor a command to use one.
    assert [line for line in lines if "None" in line or "generate" in line] == []


def test_watching_waits_for_the_end_of_a_running_run(tmp_path: Path) -> None:
    from tests.support.commands import start
    from tests.support.journals import last_step
    from tests.support.waiting import wait_for

    recorder = start_run(tmp_path / "a")
    recorder.track_point(MetricPoint({"loss": 2.0}, "train", 1, None))
    wait_for(lambda: last_step(tmp_path / "a") == 1)
    watching = start("runs", "watch", "a", cwd=tmp_path, light=True)
    assert watching.stdout is not None
    assert watching.stdout.readline() == "step     1  loss 2\n"
    assert watching.poll() is None
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 2, None))
    assert watching.stdout.readline() == "step     2  loss 1\n"
    end_run(recorder)
    rest, _ = watching.communicate()
    assert rest.startswith("finished a\n")


def test_the_last_eval_is_a_separate_phase(tmp_path: Path) -> None:
    """The Trainer calls no callback before it starts."""
    done = fmstune("train", "--json", "--max-steps", "2", "--output-dir", "out", cwd=tmp_path)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    phases = [record["phase"] for record in records if record["kind"] == "phase"]
    assert phases.index("evaluating") > phases.index("training")
    assert phases[-2:] == ["saving the model", "delivering"]
