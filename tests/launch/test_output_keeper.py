"""The log of a run's output never blocks or ends a training, and contains no part of a secret."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fmstune.launch import output_keeper, output_log
from fmstune.launch.output import redirected_output
from fmstune.launch.output_log import OutputLog
from fmstune.secrets.redaction import longest_secret

SECRETS = [
    "Tr0ub4dor-zz9x7Q-and-more-of-it",
    "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z",
    "first-half-77aQ\nsecond-half-88bW",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQ7xIBADANBg\nkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----",
]
HALVES = ["Tr0ub4", "more-of-it", "aB3dE5", "U9vW1xY3z", "half-77aQ", "half-88bW", "MIIEvQ7", "kqhkiG9"]


@pytest.fixture(autouse=True)
def _known(_environment: None) -> None:
    os.environ["DB_PASSWORD"], os.environ["OTHER_PASSWORD"] = SECRETS[0], SECRETS[2]


@settings(max_examples=25)
@given(
    st.sampled_from(SECRETS), st.integers(-60, 60), st.sampled_from(["", "\n"]),
    st.lists(st.integers(50, 3000), max_size=4), st.booleans(),
)  # fmt: skip
@example(SECRETS[0], -20, "", [], False)
@example(SECRETS[3], -40, "\n", [], False)
def test_no_part_of_a_secret_remains_wherever_the_log_cuts_the_output(
    tmp_path_factory: pytest.TempPathFactory, secret: str, at: int, end: str, writes: list[int], back: bool
) -> None:
    path = tmp_path_factory.mktemp("run") / "train.log"
    log = OutputLog(longest_line=1000, at_once=1000)
    log.path = path
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(output_log, "longest_secret", lambda: 200)
    # Where a line is cut: at its maximum length, or so far before it that the rest holds no half of a secret.
    before = 1000 + at + (0 if back else 200)
    unit = "ab, cd, ef" + (end or " ")
    text = (unit * before)[-before:] + f" {secret} " + unit * 200
    data, sizes = text.encode(), itertools.cycle([*writes, 997])
    while data:
        size = next(sizes)
        log.take(data[:size])
        data = data[size:]
    log.end()
    monkeypatch.undo()
    kept = path.read_text()
    assert not [half for half in HALVES if half in kept]
    assert kept.count("[redacted]") == 1
    words = text.replace(secret, "[redacted]").replace("\n", "")
    assert kept.replace("\n", "") == words


def test_a_gap_also_drops_a_possible_part_of_the_secret_that_it_cuts(tmp_path: Path) -> None:
    log = OutputLog()
    log.path = tmp_path / "train.log"
    margin = longest_secret()
    log.take(b"early\n" + b"x\n" * margin + SECRETS[2].partition("\n")[0].encode() + b"\n" + b"Tr0ub4dor-z")
    log.gap(1000)
    log.take(b"more-of-it\n" + b"y\n" * margin + b"late\n")
    log.end()
    kept = log.path.read_text()
    assert kept.startswith("early\n")
    assert kept.endswith("late\n")
    assert not [half for half in HALVES if half in kept]
    (gap,) = (line for line in kept.splitlines() if line.startswith("(fmstune: "))
    assert int(gap.split()[1]) == log.lost > 1000


@pytest.mark.parametrize("piece", [b"hello 1234\n" * 5957, b"\n" * 65536], ids=["short", "bare"])
def test_printing_does_not_block_on_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: bytes
) -> None:
    monkeypatch.setattr(output_keeper, "BACKLOG_BYTES", 1 << 21)
    with redirected_output() as output:
        output.set_directory(tmp_path)
        printed, begin = 0, time.monotonic()
        while printed < 20_000_000:
            printed += os.write(1, piece)
        seconds = time.monotonic() - begin
        kept = output.kept()
    _, *lines = (tmp_path / "train.log").read_bytes().splitlines(keepends=True)
    gaps = [line for line in lines if line.startswith(b"(fmstune: ")]
    # With a cost per line, 2 MB/s is the maximum; and lines that are not kept are counted.
    assert printed / seconds > 5e6, f"{printed / seconds / 1e6:.1f} MB/s"
    assert sum(map(len, lines)) - sum(map(len, gaps)) + kept.lost == printed
    assert sum(int(gap.split()[1]) for gap in gaps) == kept.lost > 0


def test_a_dying_log_process_ends_neither_the_run_nor_its_children(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(psutil.Process().children())
    with redirected_output() as output:
        output.set_directory(tmp_path)
        (log,) = {each.pid for each in set(psutil.Process().children()) - before}
        speaks = subprocess.Popen(
            ["sh", "-c", "read go; for each in 1 2 3; do echo child $each; done; echo done >&2"],
            stdin=subprocess.PIPE,
        )
        print("kept")
        output.kept()
        os.kill(log, 9)
        os.waitpid(log, 0)
        for number in range(1000):
            print("on the terminal", number, "x" * 100)
        speaks.communicate(b"go\n")
        assert speaks.returncode == 0
        assert output.kept().lines == 0
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.count("warning") == 1
    assert "train.log: the process that writes it has died" in shown.err
    for each in ("on the terminal 999", "child 3\n", "done\n"):
        assert each in shown.err


class Silent:
    def write(self, text: str) -> int:
        return len(text)


class Broken(Silent):
    def flush(self) -> None:
        raise RuntimeError("mine")


@pytest.mark.parametrize("stream", [None, Silent(), Broken()], ids=["None", "no flush", "raises"])
def test_a_replaced_stream_does_not_change_how_the_run_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], stream: object
) -> None:
    before = sys.stdout, sys.stderr

    def program() -> None:
        with redirected_output() as output:
            output.set_directory(tmp_path)
            print("kept")
            sys.stdout = sys.stderr = stream
            assert output.kept().lines == 1
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        program()
    assert (sys.stdout, sys.stderr) == before
    assert (tmp_path / "train.log").read_text().endswith("ValueError: mine\n")


def test_the_number_of_lines_counts_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "train.log"
    log.write_text("--- of a run before\n[rank 1] then\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with redirected_output() as output:
        output.set_directory(tmp_path)
        print("one\ntwo")
        assert output.kept().lines == 2
        with log.open("a") as file:
            file.write("[rank 1] three\n")
        assert output.kept().lines == 3
