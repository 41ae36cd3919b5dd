"""Two processes, and a failing tracker on rank zero: no rank waits for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fmstune.delivery.report import report
from tests.support.commands import fmstune
from tests.support.journals import events
from tests.support.ranks import TWO

COLLECTOR = "tests.sample_trackers:Collector"


def train_on_two_ranks(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`fmstune train` with four steps in two processes. A rank that waits forever makes it time out."""
    return fmstune("train", *TWO, "--max-steps", "4", *arguments, cwd=cwd, **environment)


def test_a_tracker_that_hangs_forever_stalls_no_rank(tmp_path: Path) -> None:
    options = {"fault": "hang", "at": "track", "path": str(tmp_path / "collected")}
    sets = [
        part for key, value in options.items() for part in ("--set", f"trackers.'{COLLECTOR}'.{key}={value}")
    ]
    limit = ["--set", "tracking.close_timeout=1"]
    done = train_on_two_ranks("--tracker", COLLECTOR, *sets, *limit, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = events(tmp_path / "out")
    assert [event.step for event in written if "loss" in event.values] == [1, 2, 3, 4]
    assert written[-1].status == "finished"
    assert (tmp_path / "out" / "model.safetensors").exists()
    (line,) = report(tmp_path / "out", [COLLECTOR])
    assert (line.state, line.error) == ("behind", "not finished in time")


def test_a_misconfigured_tracker_ends_all_ranks_before_the_model_loads_and_the_cause_comes_last(
    tmp_path: Path,
) -> None:
    nowhere = ["--tracker", "file", "--set", "trackers.file.path=/dev/null/metrics.csv"]
    done = train_on_two_ranks("--tracker", COLLECTOR, *nowhere, cwd=tmp_path)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the tracker file cannot be used: "), last
    assert not (tmp_path / "out").exists()
