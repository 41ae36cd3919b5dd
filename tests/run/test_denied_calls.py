"""Containers, sandboxes and hardened kernels deny system calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmstune.run.tracking import reports
from tests.support import commands, denied
from tests.support.tuned import SHORT, small, weights, weights_of


@pytest.mark.skipif(not denied.NUMBERS, reason="the numbers of system calls are known for two architectures")
def test_a_run_to_which_the_system_denies_calls_trains_the_same_weights_and_is_tracked(
    tmp_path: Path,
) -> None:
    sets = [part for setting in (*SHORT, *small(())) for part in ("--set", setting)]
    done = commands.fmstune(
        *(",".join(denied.NUMBERS), "train", "--output-dir", "out", "--tracker", "aim", "--tracker", "file"),
        *sets, cwd=tmp_path, module="tests.support.denied", fresh=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "out") == weights_of()
    lines = reports(tmp_path / "out")
    assert [line.tracker for line in lines] == ["aim", "file"]
    assert all(line.delivered == line.total > 10 for line in lines), done.stderr
