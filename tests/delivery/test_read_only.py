"""A run on a file system that cannot be written to, such as an archive: a delivery cannot record its progress
there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.run.tracking import reports
from tests.support import commands
from tests.support.shipping import COLLECTOR, record_steps
from tests.support.unprivileged import unprivileged

_MOUNTED = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
_SYNC = """
import dataclasses, json, sys
from fmstune.delivery import sync
from pathlib import Path
if {writable}: sync.is_writable = lambda folder: True  # it became read-only meanwhile
options = {{"collector": {{"path": {collected!r}}}}}
(line,) = sync.sync(Path({run!r}), "collector", options, lambda _: {reference!r})
print(json.dumps(dataclasses.asdict(line), default=str))
"""


@pytest.fixture
def archive(recorder: Recorder, run_directory: Path) -> Path:
    """The folder of a run, for `read_only`."""
    record_steps(recorder, 1, 3)
    recorder.close("finished")
    recorder.journal.close()
    return run_directory


def read_only(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments while a folder is a read-only file system. Only this process has the
    mount, which ends with it. Skips the test where that is not allowed."""
    alone = ["unshare", "--mount", "--propagation", "private"]
    try:
        allowed = subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting a file system is not allowed here")
    return subprocess.run(
        [*alone, "sh", "-c", _MOUNTED, str(folder), sys.executable, *command],
        cwd=commands.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def synced(archive: Path, collected: Path, *, writable: bool = False) -> dict[str, Any]:
    code = _SYNC.format(run=str(archive), collected=str(collected), reference=COLLECTOR, writable=writable)
    done = read_only(archive, "-c", code)
    line: dict[str, Any] = json.loads(done.stdout)
    return line


def test_a_sync_from_a_read_only_file_system_is_refused_with_the_remedy(
    archive: Path, tmp_path: Path
) -> None:
    line = synced(archive, tmp_path / "c")
    assert (line["delivered"], line["total"], line["state"]) == (0, 4, "behind")
    assert line["error"] == f"{archive}/tracking is not writable, and a delivery records its progress there"
    assert line["remedy"] == "make it writable, then sync again"
    assert not (tmp_path / "c").exists()


def test_a_sync_whose_processes_die_ends_although_the_disk_takes_no_record_of_it(
    archive: Path, tmp_path: Path
) -> None:
    line = synced(archive, tmp_path / "c", writable=True)
    assert (line["delivered"], line["state"]) == (0, "behind")


_REPORT = """
import sys
from pathlib import Path
from fmstune.run.tracking import reports
print(*(line.line() for line in reports(Path(sys.argv[1]), ["file"])))
"""


def test_a_report_of_a_run_whose_file_system_became_read_only_names_that(archive: Path) -> None:
    said = read_only(archive, "-c", _REPORT, str(archive)).stdout
    assert f"{archive}/tracking is not writable, so it may have received more than is recorded" in said
    assert "→ its file system is read-only: make it writable, or use another path; then " in said


def test_a_report_of_a_run_whose_folder_is_gone_says_so(archive: Path) -> None:
    archive.rename(archive.with_name("elsewhere"))
    (line,) = reports(archive, ["file"])
    assert (
        line.error
        == f"{archive}/tracking is not there any more, so it may have received more than is recorded"
    )
    assert line.remedy == f"bring it back; then `fmstune trackers sync {archive}`"


def test_a_run_on_a_read_only_file_system_is_shown_and_not_removed(archive: Path) -> None:
    assert read_only(archive, "-m", "fmstune", "runs", "show", str(archive)).returncode == 0
    done = read_only(archive, "-m", "fmstune", "runs", "rm", str(archive), "--yes")
    assert done.returncode == 1
    assert "cannot be removed: Read-only file system" in done.stderr
    assert archive.exists()


_CLOSED_DURING_THE_RUN = """
import os
from pathlib import Path
from transformers import TrainerCallback
from tests.support.short_runs import train

class Close(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.chmod("out/tracking", 0o{mode:o})

import __main__
print(train(Path("out"), "tracking.trackers=[\\"file\\"]", "tracking.close_timeout=2",
            "resources.interval=0", "run.callbacks=[\\"__main__:Close\\"]"))
"""


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        (0, "out/tracking cannot be read, so what it received is unknown"),
        (0o500, "out/tracking is not writable, so it may have received more than is recorded"),
    ],
)
def test_a_run_whose_tracking_folder_is_closed_meanwhile_ends_with_what_to_do(
    mode: int, what: str, tmp_path: Path
) -> None:
    done = unprivileged(_CLOSED_DURING_THE_RUN.format(mode=mode), tmp_path)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("file "))
    assert what in line
    assert "→ `chmod u+rwx out/tracking` gives you access; then `fmstune trackers sync out`" in line
    (tmp_path / "out" / "tracking").chmod(0o755)
    synced = commands.fmstune("trackers", "sync", "out", cwd=tmp_path)
    assert synced.returncode == 0, synced.stdout
    seqs = [json.loads(each)["seq"] for each in (tmp_path / "metrics-out.jsonl").read_text().splitlines()]
    assert len(seqs) == len(set(seqs)) > 6
