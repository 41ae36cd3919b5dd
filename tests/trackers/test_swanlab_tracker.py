"""SwanLab's tracker offline: its folder, read as `swanlab sync` reads it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import fmstune
from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.trackers.records import MetricPoint, RunStart
from fmstune.trackers.swanlab.frames import HEAD, framed, read_frames
from fmstune.trackers.swanlab_tracker import SwanLabTracker
from tests.support.shipping import delivered_by
from tests.support.stored import from_swanlab
from tests.support.swanlab_cloud import SwanLabCloud


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def delivered(directory: Path, **options: Any) -> Ledger:
    """The ledger after a delivery in this process."""
    return delivered_by(SwanLabTracker("swanlab", {"mode": "offline", **options}), directory)


def test_swanlab_sync_uploads_the_folder_and_a_second_sync_changes_nothing(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bin").write_bytes(b"file")
    recorder.set_params({"team": "nlp"}, "params")
    for step in range(1, 6):
        recorder.track_point(MetricPoint({"loss": step / 8}, "train", step, step / 5))
    recorder.track(0.5, "loss", "train", step=5)
    with active(recorder):
        fmstune.track_text("said", "answer", "eval", step=5)
        fmstune.track_artifact(tmp_path / "a.bin", "model")
    recorder.close("interrupted")
    ledger = delivered(run_directory)
    assert ledger.note is not None
    assert ledger.note.endswith(f"--id {ledger.run_id}`")
    shutil.rmtree(run_directory)  # the folder has everything, also on another machine
    (folder,) = Path("swanlog").rename("elsewhere").glob("run-*")
    with SwanLabCloud() as cloud:
        for name, value in cloud.environment.items():
            monkeypatch.setenv(name, value)
        for _ in range(2):
            from swanlab.sdk import Settings, sync
            from swanlab.sdk.internal.core_python import client

            sync(folder, Settings(run={"id": ledger.run_id}))
            client.reset()
        ((run_id, run),) = cloud.runs.items()
    assert run_id == ledger.run_id
    assert sorted(each for each in run.scalars if "loss" in each[0]) == [
        *(("train/loss", step, step / 8) for step in range(1, 6)), ("train/loss (2)", 5, 0.5),
    ]  # fmt: skip
    assert (run.state, run.config["params"]) == ("ABORTED", {"team": "nlp"})
    assert (run.said["name"], [each["key"] for each in run.media]) == ("run", ["eval/answer"])
    assert cloud.stored["model/a.bin"] == b"file"


def test_a_resumed_run_has_one_folder_and_the_new_values(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        recorder.track(step / 8, "loss", "train", step=step)
        recorder.track(50 + step, "cpu", "system", step=step)
    recorder.close("interrupted")
    first = delivered(run_directory)
    recorder.resumed(1)
    recorder.track(0.75, "loss", "train", step=2)
    recorder.close("finished")
    assert delivered(run_directory).run_id == first.run_id
    stored = from_swanlab(tmp_path)
    assert [point for point in stored["points"] if point[0] == "train/loss"] == [
        ["train/loss", 1, 0.125], ["train/loss", 2, 0.75],
    ]  # fmt: skip
    # System samples are numbered: several may be taken during a step.
    assert sorted(value for key, _, value in stored["points"] if key == "system/cpu") == [51, 52, 53]
    assert stored["status"] == "finished"


def test_names_that_swanlab_would_cut_or_drop_are_changed_and_reported(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    for name in (".edge", "edge.", "__swanlab__.cpu", "global_step"):
        recorder.track(1.0, name, None if "swanlab" in name else "train", step=1)
    recorder.track(1.0, "deep", "train", step=1 << 50)
    recorder.track(float("inf"), "worst", "train", step=1)
    recorder.track((1 << 53) + 1, "count", "train", step=1)
    recorder.close("finished")
    ledger = delivered(run_directory)
    keys = {key for key, _, _ in from_swanlab(tmp_path)["points"]}
    assert keys == {"train/.edge", "train/edge_", "___swanlab__.cpu", "train/global_step_2", "train/count"}
    said = " ".join(ledger.changes)
    for words in (
        "edge_",
        "___swanlab__.cpu",
        "global_step_2",
        "train/deep has a step beyond",
        "worst was not",
        "count has integers beyond 54 bits, which are rounded",
    ):
        assert words in said


def test_a_run_leaves_nothing_behind_in_its_process(recorder: Recorder, run_directory: Path) -> None:
    before = (sys.excepthook, signal.getsignal(signal.SIGINT), dict(os.environ))
    recorder.track(1.0, "loss", "train", step=1)
    recorder.close("finished")
    delivered(run_directory)
    assert (sys.excepthook, signal.getsignal(signal.SIGINT), dict(os.environ)) == before
    import swanlab

    assert not swanlab.has_run()
    (folder,) = Path("swanlog").glob("run-*")
    files = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert len(files) == 2  # the record file and our own: nothing about the machine, packages, Git or output


def test_a_disabled_run_is_stored_nowhere(recorder: Recorder, run_directory: Path, tmp_path: Path) -> None:
    recorder.set_params({"a": 1}, "params")
    recorder.track(1.0, "loss", "train", step=1)
    recorder.close("finished")
    note = delivered(run_directory, mode="disabled").note
    assert note == "disabled: nothing is sent to SwanLab and nothing is kept for it"
    assert not Path("swanlog").exists()


def test_standalone_it_counts_steps_as_swanlab_does(tmp_path: Path) -> None:
    tracker = SwanLabTracker("swanlab", {"mode": "offline"})
    tracker.set_params({"lr": 0.1})
    for value in (3.0, 2.0):
        tracker.track(value, "loss", "train")
    tracker.open(RunStart("named", "."))
    tracker.close("finished")
    stored = from_swanlab(tmp_path)
    assert stored["points"] == [["train/loss", 0, 3.0], ["train/loss", 1, 2.0]]
    assert (stored["params"], stored["status"]) == ({"params": {"lr": 0.1}}, "finished")


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = SwanLabTracker("swanlab", {"mode": "offline", "dir": "file/below"}).check(1)
    assert (found.state, "is not a folder" in found.detail) == ("bad_option", True)
    found = SwanLabTracker("swanlab", {"mode": "offline", "dir": "/proc/below"}).check(1)
    assert found.state == "no_permission"
    assert not Path("swanlog").exists()


def test_a_full_disk_leaves_no_folder_of_a_run_that_could_not_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tracker = SwanLabTracker("swanlab", {"mode": "offline"})
    with monkeypatch.context() as during:
        during.setattr("fmstune.trackers.swanlab.files.replace_text", full)
        with pytest.raises(OSError, match="No space"):
            tracker.open(RunStart("run", ".", run_id="one", new_run_id="a"))
    assert not list(Path("swanlog").glob("run-*"))
    assert tracker.open(RunStart("run", ".", run_id="one", new_run_id="a")).id == "a"


@pytest.mark.parametrize("length", [0, 1, 32754, 32755, 32761, 32762, 100_000])
def test_records_are_framed_as_swanlab_frames_them(length: int, tmp_path: Path) -> None:
    from swanlab.sdk.internal.core_python.store import DataStoreWriter

    records = [b"first", bytes(index % 251 for index in range(length)), b"last"]
    writer = DataStoreWriter()
    writer.open(tmp_path / "theirs")
    for record in records:
        writer.write(record)
    writer.close()
    data = HEAD + framed(records[:1], len(HEAD))
    data += framed(records[1:], len(data))
    assert data == (tmp_path / "theirs").read_bytes()
    assert [record for record, _ in read_frames(tmp_path / "theirs")] == records
    (tmp_path / "torn").write_bytes(data[:-2])
    assert [record for record, _ in read_frames(tmp_path / "torn")] == records[:-1]
