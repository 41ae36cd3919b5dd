"""A terminal that disappears ends no training, and changes no exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from fmstune.cli.terminal import screen
from fmstune.console import RunConsole
from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from tests.support.commands import fmstune, start
from tests.support.made_runs import make_run

TRAIN = ["train", "--max-steps", "2", "--output-dir", "out"]


def test_a_run_without_standard_streams_trains_and_tracks(tmp_path: Path) -> None:
    done = fmstune(*TRAIN, "--tracker", "file", cwd=tmp_path, closed=True)
    assert done.returncode == 0
    events = list(JournalReader(tmp_path / "out" / TRACKING_DIR / JOURNAL_NAME))
    assert events[-1].status == "finished"
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_run_continues_after_its_output_pipe_closes(tmp_path: Path) -> None:
    with start(*TRAIN, cwd=tmp_path) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        assert process.wait() == 0
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_terminal_without_a_size_gets_all_lines(tmp_path: Path) -> None:
    done = fmstune(*TRAIN, "--tracker", "file", cwd=tmp_path, COLUMNS="0", LINES="0")
    assert {"model", "data", "file", "tuned", "time"} <= {
        line.split()[0] for line in done.stderr.splitlines()
    }


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_error_that_cannot_be_printed_keeps_its_exit_code(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start(*TRAIN, "--set", "a.b=1", cwd=tmp_path, stderr=full.fileno(), light=True)
        process.communicate()
    assert process.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_answer_that_has_no_room_is_an_error_of_the_output(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("trackers", "list", cwd=tmp_path, stdout=full.fileno(), light=True)
        _, said = process.communicate()
    assert process.returncode == 1
    assert said == "error: the output cannot be written: No space left on device; send it elsewhere.\n"


def test_output_that_cannot_be_printed_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    gone = os.fdopen(writing, "w", buffering=1, closefd=False)
    monkeypatch.setattr(sys, "stderr", gone)
    out = RunConsole(screen())
    out.say("step", "1/2")
    out.warn("nobody hears")
    assert out.console.quiet
    with contextlib.suppress(BrokenPipeError):
        gone.close()
    os.close(writing)


def test_a_single_rank_is_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from fmstune.launch.environment import is_main_process

    monkeypatch.setenv("RANK", "1")  # left over in a user's shell
    assert is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_main_process()


def test_a_truncated_file_is_not_reported_as_an_interruption(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fmstune.cli.main import main

    def ends(*_: object, **__: object) -> None:
        raise EOFError("Ran out of input")  # as `torch.load` does; Click treats it as Ctrl-D

    monkeypatch.setattr("fmstune.run.run.run", ends)
    with pytest.raises(SystemExit) as left:
        main(["train", "--output-dir", str(tmp_path / "out")])
    assert left.value.code == 1
    assert capsys.readouterr().err.endswith("error: EOFError: Ran out of input (--debug shows where)\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--learning-rate", "abc"), ("train", "--bogus"), ("runs", "show", "nope"),
        ("trackers", "check", "nope"), ("config", "explain", "nope"), ("data", "nope.jsonl"),
    ],
)  # fmt: skip
def test_with_json_an_error_is_a_json_object(
    arguments: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from fmstune.cli.main import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--json"])
    said = capfd.readouterr()
    answer = json.loads(said.out)
    assert (answer["kind"], answer["exit_code"]) == ("error", left.value.code) == ("error", 2)
    assert said.err == f"error: {answer['error']}\n"


@pytest.mark.parametrize(
    "arguments", [("export", "run"), ("export", "run", "--to", "json"), ("show", "run", "--json"), ("list",)]
)
def test_a_command_whose_output_pipe_closes_exits_quietly(arguments: tuple[str, ...], tmp_path: Path) -> None:
    make_run(tmp_path / "run", dict.fromkeys(range(3_000), 1.0))
    with start("runs", *arguments, cwd=tmp_path, light=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 0
