"""A run on a file system that cannot be written to, such as an archive: a delivery cannot record its progress
there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmstune.cli.app import app
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.sync import sync
from fmstune.errors import RunError
from fmstune.report.remove import planned, remove
from tests.support.shipping import COLLECTOR, record_steps


@pytest.fixture
def archive(recorder: Recorder, run_directory: Path) -> Iterator[Path]:
    """The folder of a run on a real read-only file system; skipped without permission to mount one."""
    record_steps(recorder, 1, 3)
    recorder.close("finished")
    recorder.journal.close()
    mount = ["mount", "--bind", str(run_directory), str(run_directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run_directory)], check=True)
        yield run_directory
    finally:
        subprocess.run(["umount", "--lazy", str(run_directory)], check=True)


def test_a_sync_from_a_read_only_file_system_is_refused_with_the_remedy(
    archive: Path, tmp_path: Path
) -> None:
    (line,) = sync(archive, "collector", {"collector": {"path": str(tmp_path / "c")}}, lambda _: COLLECTOR)
    assert (line.delivered, line.total, line.state) == (0, 4, "behind")
    assert line.error == f"{archive}/tracking is not writable, and a delivery records its progress there"
    assert line.remedy == "make it writable, then sync again"
    assert not (tmp_path / "c").exists()


def test_a_sync_whose_processes_die_ends_although_the_disk_takes_no_record_of_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.sync.is_writable", lambda folder: True)  # it became so meanwhile
    (line,) = sync(archive, "collector", {"collector": {"path": str(tmp_path / "c")}}, lambda _: COLLECTOR)
    assert (line.delivered, line.state) == (0, "behind")


def test_a_run_on_a_read_only_file_system_is_shown_and_not_removed(archive: Path) -> None:
    assert CliRunner().invoke(app, ["runs", "show", str(archive)]).exit_code == 0
    with pytest.raises(RunError, match="cannot be removed: Read-only file system"):
        remove(planned(archive))
