"""Which points of a run are drawn, listed and summed: those of the journal, each with its own time."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fmstune.cli.main import main
from fmstune.cli.run_watch import _shown
from fmstune.delivery.journal.reader import JournalReader
from fmstune.report.commands import next_commands
from fmstune.report.curves import read_run
from fmstune.report.ending import ending
from fmstune.report.live_state import Follower, LiveState
from fmstune.report.page_charts import page_charts
from fmstune.report.show import view_of
from fmstune.report.summary import unread
from fmstune.text import counted
from fmstune.trackers.records import MetricPoint
from tests.support.commands import FAST, start
from tests.support.journals import journal_path
from tests.support.made_runs import end_run, make_run, start_run


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@settings(max_examples=50)
@given(st.lists(st.one_of(st.integers(0, 6), st.tuples(st.integers(0, 6))), min_size=2, max_size=12))
def test_each_point_of_a_chart_has_the_time_that_the_journal_has(
    tmp_path_factory: pytest.TempPathFactory, happens: list[int | tuple[int]]
) -> None:
    """An integer is a tracked step, one in brackets a step from which the run is resumed."""
    directory = tmp_path_factory.mktemp("points") / "run"
    recorder = start_run(directory)
    expected: dict[int, tuple[int, list[float]]] = {}
    session = 0
    for number, step in enumerate(happens):
        if isinstance(step, tuple):
            end_run(recorder, None)
            recorder = start_run(directory)
            recorder.resumed(step[0])
            session += 1
            continue
        recorder.track_point(MetricPoint({"loss": float(number)}, "train", step))
        known, there = expected.get(step, (session, []))
        expected[step] = session, [*(there if known == session else []), float(number)]
    end_run(recorder)
    at = {
        event.values["loss"]: event.time
        for event in JournalReader(journal_path(directory))
        if event.kind == "metrics"
    }
    run = read_run(directory)
    began = run.replay.header.time
    wanted = [
        (step, value, round(at[value] - began, 1)) for step in sorted(expected) for value in expected[step][1]
    ]
    drawn = [
        point
        for chart in page_charts(run, 1000)[0]
        for line in chart.to_json()["lines"]
        for point in zip(line["x"], line["y"], line["t"], strict=True)
    ]
    assert drawn == (wanted if len(wanted) > 1 else [])


def test_the_pause_before_a_resume_uses_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(second: int) -> None:
        monkeypatch.setattr("time.time", lambda: 1_700_000_000.0 + second)
        recorder.track_sample({"gpu_0_power_watts": 300.0}, "system", 1)

    recorder = start_run(Path("a"))
    sample(0)
    sample(10)
    end_run(recorder, None)
    recorder = start_run(Path("a"))
    recorder.resumed(1)
    sample(36_000)
    sample(36_010)
    sample(35_000)  # the clock was set back
    end_run(recorder)
    assert ending(Path("a")).energy == pytest.approx(300 * 20 / 3600)


@pytest.mark.parametrize("values", ['"x"', "[1]", "7"])
def test_a_line_with_invalid_values_damages_only_its_own_run(
    values: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("runs/a"))
    make_run(Path("runs/b"))
    line = f'{{"seq":4,"time":1.0,"kind":"metrics","stage":"train","step":1,"values":{values}}}\n'
    with journal_path(Path("runs/a")).open("a") as file:
        file.write(line)
    for command in (["list"], ["show", "runs/a"]):
        with pytest.raises(SystemExit) as end:
            main(["runs", *command])
        assert end.value.code == 0
    assert "runs/b" in capsys.readouterr().out


def test_sorting_supports_non_numeric_params_and_the_order_of_conditions_does_not_matter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"a": 3, "b": "NaN", "c": 1, "d": "nan", "e": 2}.items():
        make_run(Path("runs", name), params={"q": value, **({"foo": 1} if name == "a" else {})})

    def listed(*arguments: str) -> list[str]:
        with pytest.raises(SystemExit) as end:
            main(["runs", "list", *arguments])
        assert end.value.code == 0
        return [line.split()[0][-1] for line in capsys.readouterr().out.splitlines()[1:]]

    assert listed("--sort", "q")[:3] == ["c", "e", "a"]
    assert listed("--where", "q=1", "--where", "foo=1") == listed("--where", "foo=1", "--where", "q=1") == []


def test_watching_a_long_finished_run_shows_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(Path("a"), {step: 1 / step for step in range(1, 41)})
    monkeypatch.setitem(Follower.update.__kwdefaults__, "most", 10)  # type: ignore[arg-type]
    state = LiveState()
    _shown(Path("a"), state, Follower(Path("a")), Console(file=io.StringIO(), force_terminal=True))
    assert (state.step, state.status) == (40, "finished")


@pytest.mark.parametrize("name", ["実験\u3000１", "-x", "a'b\nc", "tab\there", "\u202egnp"])
def test_a_suggested_command_quotes_the_directory_for_a_shell(name: str) -> None:
    make_run(Path(name))
    show = next_commands(view_of(read_run(Path(name))))[-1]
    assert show.isprintable() or "\u3000" in show
    printed = subprocess.run(
        ["bash", "-c", f'fmstune() {{ printf %s "$3"; }}; {show}'], capture_output=True, check=True
    )
    found = printed.stdout.decode()
    assert Path(found) == Path(name)
    assert not found.startswith("-")


def test_a_broken_standard_output_ends_no_training(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = ("train", "--json", "--max-steps", "3", *FAST, "--output-dir", "out")
    try:
        with start(*arguments, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE) as process:
            _, said = process.communicate()
    finally:
        os.close(write)
    assert process.returncode == 0, said
    assert "standard output cannot be written to (Broken pipe); the rest of it is lost" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_output_of_a_callback_is_not_in_the_json_output(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "from transformers import TrainerCallback\n"
        "class Noisy(TrainerCallback):\n"
        "    def on_step_end(self, *args, **kwargs):\n"
        "        print('hello')\n"
    )
    arguments = ("--max-steps", "2", *FAST, "--set", "run.callbacks=['noisy:Noisy']", "--output-dir", "out")
    with start("train", *arguments, cwd=tmp_path) as process:
        answer, said = process.communicate()
    assert process.returncode == 0, said
    assert answer == "out\n"
    assert "hello" not in said
    assert (tmp_path / "out/train.log").read_text().count("hello") == 2


@given(st.data())
@settings(max_examples=50)
def test_lines_that_a_journal_has_twice_count_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = make_run(tmp_path_factory.mktemp("twice") / "run", {step: 1 / step for step in range(1, 9)})
    once, path = read_run(directory), journal_path(directory)
    lines = path.read_bytes().splitlines(keepends=True)
    begin = data.draw(st.integers(1, len(lines) - 1))
    again = lines[begin : begin + data.draw(st.integers(1, 9))]
    at = data.draw(st.sampled_from([begin + len(again), len(lines)]))
    lines[at:at] = again
    path.write_bytes(b"".join(lines))
    twice = read_run(directory)
    points = [[(curve.key, list(curve.points())) for curve in run.curves] for run in (once, twice)]
    assert points[0] == points[1]
    assert (twice.replay.events, twice.replay.status) == (once.replay.events, "finished")
    assert unread(twice.replay) == [counted(len(again), "repeated line")]
