"""The files of a run arrive exactly once in each tracker that stores files, as they were when they were
handed over, whatever kills the delivery. Read back through the real SDKs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fmstune
from fmstune.delivery.artifacts import record
from fmstune.delivery.delivered_files import release_links
from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.report import report
from fmstune.testing.fork_server import Kill
from tests.support.journals import events, journal_path
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives
from tests.support.unprivileged import unprivileged

TRACKER_CASES = {
    "aim": ("aimstack_tracker:AimStackTracker", {"repo": "."}),
    "wandb": (
        "wandb_tracker:WandbTracker", {"mode": "offline", "dir": "."},
    ),
    "mlflow": (
        "mlflow_tracker:MlflowTracker", {"tracking_uri": "sqlite:///mlflow.db"},
    ),
    "trackio": ("trackio_tracker:TrackioTracker", {}),
    "swanlab": ("swanlab_tracker:SwanLabTracker", {"mode": "offline"}),
    "comet": ("comet_tracker:CometTracker", {"mode": "offline"}),
    "clearml": (
        "clearml_tracker:ClearmlTracker", {"offline": True, "dir": "clearml"},
    ),
    "file": ("file_tracker:FileTracker", {"path": "stored.jsonl"}),
}  # fmt: skip


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder that a user hands over."""
    folder = tmp_path / "given"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)))
    (folder / "deep" / "ü b.txt").write_text("text")
    return folder


@pytest.mark.parametrize("kills", [(), (Kill(2, True), Kill(1, False), Kill(2, True))], ids=["", "killed"])
@pytest.mark.parametrize("name", TRACKER_CASES)
def test_files_arrive_as_they_were_when_handed_over(
    name: str,
    kills: tuple[Kill, ...],
    run_directory: Path,
    recorder: Recorder,
    given: Path,
) -> None:
    with active(recorder):
        fmstune.track(1.0, "loss", "train", step=1)
        fmstune.track_artifact(given, "things", type="dataset")
        fmstune.track_artifact(given / "a.bin")
    recorder.close("finished")
    (given / "a.bin").write_text("something else by now")
    shutil.rmtree(given / "deep")
    if name == "mlflow":
        store_in(run_directory.parent)
    reference, options = TRACKER_CASES[name]
    where = (run_directory, f"fmstune.trackers.{reference}", options)
    for kill in kills:
        lives(name).deliver(*where, kill)
    assert lives(name).deliver(*where)
    assert lives(name).deliver(*where)
    (line,) = report(run_directory, ["t"])
    assert (line.state, line.delivered) == ("complete", line.total)
    found = lives(name).read(f"tests.support.media:files_from_{name}", run_directory.parent)
    data = bytes(range(256)).decode("latin-1")
    ledger = load_ledger(run_directory, "t")
    assert ledger is not None
    end = f"-{ledger.run_id}" if name in ("wandb", "trackio") else ""
    assert found == {
        f"things{end}/a.bin": data, f"things{end}/deep/ü b.txt": "text", f"a.bin{end}/a.bin": data,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_offline_files_are_sent_later_also_from_a_run_whose_folder_was_moved(
    name: str, run_directory: Path, recorder: Recorder, given: Path
) -> None:
    with active(recorder):
        fmstune.track_artifact(given / "a.bin", "config.yaml")  # SwanLab has a file of this name
        fmstune.track_artifact(given, "things")
        record(recorder, {"model.bin": given / "a.bin"}, "model", "model", link=True)
    recorder.close("finished")
    reference, options = TRACKER_CASES[name]
    assert lives(name).deliver(run_directory, f"fmstune.trackers.{reference}", options)
    release_links(run_directory)
    moved = run_directory.rename(run_directory.with_name("moved"))
    shutil.rmtree(given)
    (line,) = report(moved, ["t"])
    assert (line.state, line.artifacts) == ("complete", "3 artifacts, 0.0 MB")
    found = lives(name).read(f"tests.support.media:files_from_{name}", moved.parent)
    assert sorted(len(content) for content in found.values()) == [4, 256, 256, 256]


def test_a_plug_in_that_cannot_store_files_reports_it(
    run_directory: Path, recorder: Recorder, given: Path
) -> None:
    with active(recorder):
        fmstune.track_artifact(given)
    recorder.close("finished")
    assert lives("file").deliver(run_directory, "tests.support.stored:Naive", {})
    (line,) = report(run_directory, ["t"])
    assert line.changes == ("the artifact given stays in the journal only: this tracker stores no files",)


def test_files_of_the_run_are_hard_linked_and_a_later_change_is_detected(
    run_directory: Path, recorder: Recorder, given: Path
) -> None:
    record(recorder, {"model.bin": given / "a.bin"}, "model", "model", link=True)
    recorder.close("finished")
    (event, _) = events(run_directory)
    kept = journal_path(run_directory).parent / "files" / event.item["folder"] / "model.bin"
    assert kept.samefile(given / "a.bin")
    (given / "a.bin").write_bytes(b"written into")
    for forgive in (True, False, False):
        lives("file").deliver(
            run_directory, "fmstune.trackers.file_tracker:FileTracker", {"path": "stored.jsonl"},
            forgive=forgive,
        )  # fmt: skip
    (line,) = report(run_directory, ["t"])
    assert line.delivered == line.total - 1
    assert "has changed or is missing" in str(line.error)


def test_what_cannot_be_handed_over_is_refused_or_reported(recorder: Recorder, run_directory: Path) -> None:
    for wrong in ("nowhere", 5, None):
        with pytest.raises(ValueError, match="track_artifact"):
            fmstune.track_artifact(wrong)  # type: ignore[arg-type]
    item = record(recorder, {"model.bin": Path("gone")}, "model", "model", link=True)
    assert item["lost"] == "No such file or directory"
    assert not list((journal_path(run_directory).parent / "files").iterdir())


def test_linked_folders_are_handed_over_and_one_that_may_not_be_read_is_reported(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.txt").write_text("a")
    (tmp_path / "given" / "link").symlink_to(tmp_path / "shared")
    code = (
        "from fmstune.delivery.artifacts import _files_of; from pathlib import Path\n"
        "try: print(*_files_of(Path('given'), None))\n"
        "except OSError as error: print(error.strerror, error.filename)"
    )
    assert unprivileged(code, tmp_path).stdout == "link/a.txt\n"
    (tmp_path / "shared").chmod(0)
    assert unprivileged(code, tmp_path).stdout == "Permission denied given/link\n"
    with active(recorder):
        fmstune.track_artifact("a" * 300, "long")
    (event,) = events(run_directory)
    assert event.item["lost"] == f"{'a' * 300}: File name too long"


def test_a_run_directory_is_handed_over_without_its_journal(recorder: Recorder, run_directory: Path) -> None:
    (run_directory / "model.bin").write_bytes(b"m")
    with active(recorder):
        fmstune.track_artifact(run_directory, "all")
        fmstune.track_artifact(run_directory, "again")
    first, again = events(run_directory)
    assert (first.item["files"], first.item["folder"]) == (1, again.item["folder"])
