"""What is complete is looked at by `trackers sync`: somebody may have removed a tracker's storage since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.sync import sync
from fmstune.trackers.aimstack_tracker import AimStackTracker
from fmstune.trackers.event_file import stored_in
from fmstune.trackers.records import RunStart
from fmstune.trackers.registry import reference
from tests.support.shipping import deliver, job

REMOVED: dict[str, Callable[[Path], object]] = {
    "file": lambda folder: (folder / "m.jsonl").rename(folder / "elsewhere.jsonl"),
    "file, emptied": lambda folder: (folder / "m.jsonl").write_text(""),
    "aim": lambda folder: (folder / ".aim").rename(folder / "elsewhere"),
}


@pytest.mark.parametrize("what", REMOVED)
def test_a_storage_that_was_removed_gets_everything_again(
    what: str, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    name = what.partition(",")[0]
    options = {"path": str(tmp_path / "m.jsonl")} if name == "file" else {"repo": str(tmp_path)}
    deliver(recorder, run_directory, Job(name, reference(name), options))
    recorder.journal.close()
    (line,) = sync(run_directory, None, {}, reference)
    assert (line.state, line.note) == ("complete", None)

    REMOVED[what](tmp_path)
    (line,) = sync(run_directory, None, {}, reference)
    assert line.state == "complete"
    assert "all of it was delivered again" in str(line.note)
    if name == "file":
        assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 12
    else:
        from aim import Repo

        (run,) = Repo.from_path(str(tmp_path)).iter_runs()
        (series,) = run.metrics()
        assert len(list(series.values.sparse_list()[0])) == 10
    (line,) = sync(run_directory, None, {}, reference)
    assert line.state == "complete"
    assert "not looked" not in str(line.note)


def test_a_tracker_that_cannot_tell_is_said_not_to_have_been_looked_at(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    deliver(recorder, run_directory, job(tmp_path / "c"))
    recorder.journal.close()
    before = (tmp_path / "c").read_bytes()
    (line,) = sync(run_directory, None, {}, str)
    assert line.state == "complete"
    assert "not looked whether it is still there" in line.line()
    assert (tmp_path / "c").read_bytes() == before
    assert report(run_directory, ["collector"])[0].note is None


def test_what_a_storage_holds_is_told_without_making_one(tmp_path: Path) -> None:
    assert stored_in(tmp_path / "none.jsonl", "a" * 32, 0) is False
    assert stored_in(Path("/dev/null"), "a" * 32, 3) is None
    tracker = AimStackTracker(tracker_config={"repo": str(tmp_path)})
    assert tracker.is_stored(RunStart("r", ".", tracker_run_id="0" * 24), 3) is False
    tracker = AimStackTracker(tracker_config={"repo": "aim://127.0.0.1:1"})
    assert tracker.is_stored(RunStart("r", ".", tracker_run_id="0" * 24), 3) is None
