"""What libraries and user code print during a run is in its `train.log`, in full, and nowhere else."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.launch.output_log import OutputLog
from tests.support.commands import FAST, fmstune

TRAIN = ["train", *FAST, "--max-steps", "2", "--output-dir", "out", "--set", "training.save_strategy=no"]
LOUD = """
import logging, os, warnings
from transformers import TrainerCallback

class Loud(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        print("a print", state.global_step)
        warnings.warn("no gradient comes here")
        warnings.warn("says who", FutureWarning)
        warnings.warn("barrier(): using the device under current context. You can ...")
        logging.getLogger("some.library").warning("row %s is odd", state.global_step)
        logging.getLogger("some.library").info("nobody asked")
        os.environ["LATE_API_KEY"] = "zz-late-secret-99887766"
        print("the key is", os.environ["LATE_API_KEY"])
        os.write(1, b"fd 1 of C\\n")
        os.write(2, b"fd 2 of C, without an end")
        for number in range(12):
            warnings.warn(f"number {number} of many")
"""
CRASHES = """
import ctypes
from transformers import TrainerCallback

class Crashes(TrainerCallback):
    def on_step_end(self, *_, **__):
        print("last words")
        ctypes.string_at(0)
"""


def test_output_of_a_callback_is_in_the_log_and_not_on_stdout(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    done = fmstune(*TRAIN, "--json", "--set", "run.callbacks=['loud:Loud']", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "out/train.log").read_text()
    for each in ("a print 1\n", "a print 2\n", "row 2 is odd", "fd 1 of C\n", "barrier(): using"):
        assert each in log
    assert "fd 2 of C, without an end" in log
    assert "the key is [redacted]" in log
    assert "zz-late" not in log + done.stderr + done.stdout
    # Warnings that the user can act on are shown, once; others are not.
    assert done.stderr.count("warning  loud.py:8: no gradient comes here\n") == 1
    assert done.stderr.count("warning  some: row 1 is odd\n") == 1
    for each in ("a print", "fd 1", "fd 2", "says who", "row 2", "barrier"):
        assert each not in done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records[-1]["kind"] == "end"
    (more,) = (each["text"] for each in records if "in the log" in each.get("text", ""))
    assert done.stderr.count(more) == 1
    (said,) = (each["text"] for each in records if each.get("label") == "log")
    assert said.startswith("out/train.log: ")


@pytest.mark.parametrize("ends", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_run_whose_process_ends_without_a_message_says_so_with_its_last_output(
    ends: str, tmp_path: Path
) -> None:
    (tmp_path / "ends.py").write_text(CRASHES.replace("ctypes.string_at(0)", f"import os; {ends}"))
    done = fmstune(*TRAIN, "--set", "run.callbacks=['ends:Crashes']", cwd=tmp_path)
    assert done.returncode == (-signal.SIGKILL if "kill" in ends else 0)
    *_, said, error = done.stderr.splitlines()
    assert said == "last words"
    assert error == (
        "error: the process was killed, or code in it called exit; see " + str(tmp_path / "out/train.log")
    )


def test_a_crash_and_an_error_are_in_the_log_and_a_resumed_run_appends_to_it(tmp_path: Path) -> None:
    (tmp_path / "crashes.py").write_text(CRASHES)
    done = fmstune(*TRAIN, "--set", "run.callbacks=['crashes:Crashes']", cwd=tmp_path)
    assert done.returncode == -signal.SIGSEGV
    assert done.stderr.rstrip().endswith("out/train.log"), done.stderr
    assert "Fatal Python error: Segmentation fault\nCurrent thread" in done.stderr
    (tmp_path / "crashes.py").write_text(CRASHES.replace("ctypes.string_at(0)", "raise ValueError('mine')"))
    done = fmstune(*TRAIN, "--resume", "--set", "run.callbacks=['crashes:Crashes']", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("error: ValueError: mine (out/error.log shows where)\n")
    log = (tmp_path / "out/train.log").read_text()
    assert log.count("--- ") == 2
    assert log.count("last words") == 2
    assert log.index("Fatal Python error") < log.index("ValueError: mine\n")


def test_a_run_that_never_got_a_directory_prints_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "speaks.py").write_text("print('I am imported')\nraise ImportError('and broken')\n")
    done = fmstune("train", "--tracker", "speaks:Tracker", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert not (tmp_path / "out").exists()
    assert done.stderr.splitlines()[-1].startswith("error: ")


def shown(line: bytes) -> str:
    return line.rstrip(b"\r").split(b"\r")[-1].decode("utf-8", "replace")


@given(st.lists(st.binary(max_size=12), max_size=20), st.data())
def test_each_line_is_kept_however_it_arrives_and_while_the_folder_is_missing(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run") / "away"
    text = b"\n".join(chunks)
    log = OutputLog("head\n", "[rank 1] ")
    log.path = folder / "train.log"
    there = data.draw(st.integers(0, 20))
    while text:
        if there == 0:
            folder.mkdir()
        there -= 1
        cut = data.draw(st.integers(1, len(text)))
        log.take(text[:cut])
        if data.draw(st.booleans()):
            log.write_held()
        text = text[cut:]
    folder.mkdir(exist_ok=True)
    log.end()
    lines = b"\n".join(chunks).split(b"\n")
    lines = lines if lines[-1] else lines[:-1]
    expected = "head\n" + "".join(f"[rank 1] {shown(line)}\n" for line in lines)
    assert (folder / "train.log").read_bytes().decode() == expected
    assert log.lost == 0


def test_a_long_log_keeps_its_beginning_and_end_and_reports_what_is_left_out(tmp_path: Path) -> None:
    log = OutputLog(first=100, last=30)
    log.path = tmp_path / "train.log"
    for number in range(1000):
        log.take(b"line %03d\n" % number)
        if number % 3:
            log.write_held()
    log.end()
    lines = log.path.read_text().splitlines()
    assert lines[0] == "line 000"
    assert lines[-1] == "line 999"
    (left_out,) = (line for line in lines if line.startswith("(fmstune: "))
    assert int(left_out.split()[1]) == 9 * (1000 - (len(lines) - 1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_a_full_disk_cannot_take_waits_and_is_counted_at_the_end(tmp_path: Path) -> None:
    log = OutputLog(waiting=50)
    log.path = Path("/dev/full")
    for number in range(8):
        log.take(b"line %03d\n" % number)
        log.write_held()
    assert log.problem
    log.path = tmp_path / "train.log"
    log.flush()
    log.end()
    *kept, gap = log.path.read_text().splitlines()
    assert kept[0] == "line 000"
    assert 9 * len(kept) + log.lost == 8 * 9
    assert gap == f"(fmstune: {log.lost} bytes lost here: No space left on device)"


def test_a_program_that_calls_the_command_gets_its_streams_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from fmstune.launch.output import redirected_output

    def program() -> None:
        with redirected_output() as output:
            print("theirs")
            print("ours", file=output.err, flush=True)
            output.set_directory(tmp_path)
            assert output.kept().lines == 1
            raise ValueError("mine")

    streams = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="mine"):
        program()
    assert (sys.stdout, sys.stderr) == streams
    print("after")
    assert capfd.readouterr() == ("after\n", "ours\n")
    log = (tmp_path / "train.log").read_text()
    assert "\ntheirs\n" in log
    assert log.endswith("ValueError: mine\n")
