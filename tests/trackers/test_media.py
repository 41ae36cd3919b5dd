"""Text, images and histograms arrive exactly once in each tracker that supports them, whatever kills the
delivery; otherwise, the report says so. Read back through the real SDKs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmstune
from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.report import report
from fmstune.testing.fork_server import Kill
from tests.support.journals import journal_path
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives

PIXELS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8)
OTHER = 255 - PIXELS
LONG = "a line with <tags> & ünïcode\n" * 1000


@dataclass(frozen=True)
class TrackerCase:
    reference: str
    options: dict[str, Any]
    kinds: tuple[str, ...] = ("text", "image", "histogram")
    captions: bool = True


TRACKER_CASES = {
    "aim": TrackerCase("aimstack_tracker:AimStackTracker", {"repo": "."}),
    "wandb": TrackerCase(
        "wandb_tracker:WandbTracker", {"mode": "offline", "dir": "."},
    ),
    "mlflow": TrackerCase(
        "mlflow_tracker:MlflowTracker", {"tracking_uri": "sqlite:///mlflow.db"}, ("text", "image"), False,
    ),
    "trackio": TrackerCase(
        "trackio_tracker:TrackioTracker", {},
    ),
    "tensorboard": TrackerCase(
        "tensorboard_tracker:TensorBoardTracker", {"dir": "."}, captions=False,
    ),
    "dvclive": TrackerCase(
        "dvclive_tracker:DvcLiveTracker", {}, ("image",), False
    ),
    "swanlab": TrackerCase(
        "swanlab_tracker:SwanLabTracker", {"mode": "offline"},
    ),
    "comet": TrackerCase("comet_tracker:CometTracker", {"mode": "offline"}),
    "clearml": TrackerCase(
        "clearml_tracker:ClearmlTracker", {"offline": True, "dir": "clearml"}, captions=False,
    ),
    "file": TrackerCase("file_tracker:FileTracker", {"path": "stored.jsonl"}),
}  # fmt: skip


def track(recorder: Recorder) -> list[list[Any]]:
    """Track some of each kind; returns what has to arrive."""
    with active(recorder):
        fmstune.track(1.0, "loss", "train", step=1)
        fmstune.track_text("short", "answer", "eval", step=1)
        fmstune.track_text(LONG, "answer", "eval", step=2)
        fmstune.track_text("again", "answer", "eval", step=2)
        fmstune.track_image(PIXELS, "sample", "eval", step=1, caption="a cap")
        fmstune.track_image(OTHER / 255, "sample", "eval", step=1)
        fmstune.track_histogram([0.0, 1.0, 1.0, float("nan")], "weights", "train", step=1, bins=2)
        fmstune.track(0.5, "loss", "train", step=2)
    recorder.close("finished")
    return [
        ["text", "eval/answer", 1, "short"],
        ["text", "eval/answer", 2, LONG],
        ["text", "eval/answer", 2, "again"],
        ["image", "eval/sample", 1, [PIXELS.tolist(), "a cap"]],
        ["image", "eval/sample", 1, [OTHER.tolist(), ""]],
        ["histogram", "train/weights", 1, [[1, 2], 0.0, 1.0]],
    ]


@pytest.mark.parametrize("kills", [(), (Kill(4, True), Kill(3, False), Kill(3, True))], ids=["", "killed"])
@pytest.mark.parametrize("name", TRACKER_CASES)
def test_each_kind_arrives_once_where_it_is_supported(
    name: str,
    kills: tuple[Kill, ...],
    run_directory: Path,
    recorder: Recorder,
) -> None:
    case = TRACKER_CASES[name]
    expected = track(recorder)
    if name == "mlflow":
        store_in(run_directory.parent)
    where = (run_directory, f"fmstune.trackers.{case.reference}", case.options)
    for kill in kills:
        lives(name).deliver(*where, kill)
    assert lives(name).deliver(*where)
    assert lives(name).deliver(*where)  # this changes nothing

    (line,) = report(run_directory, ["t"])
    assert (line.state, line.delivered) == ("complete", line.total)
    found = lives(name).read(f"tests.support.media:from_{name}", run_directory.parent)
    wanted = [each for each in expected if each[0] in case.kinds]
    if not case.captions:
        wanted = [[*each[:3], [each[3][0], ""]] if each[0] == "image" else each for each in wanted]
    assert sorted(map(repr, found)) == sorted(map(repr, wanted))
    left_out = "captions of the image eval/sample are left out: this tracker stores none"
    assert (left_out in line.changes) == (not case.captions)
    only = "the histogram train/weights stays in the journal only: this tracker stores no histograms"
    assert (only in line.changes) == ("histogram" not in case.kinds)
    assert ("the histogram train/weights leaves out numbers that are not finite (1)" in line.changes) == (
        "histogram" in case.kinds
    )


def test_a_plug_in_that_does_not_support_them_reports_each_once(
    run_directory: Path, recorder: Recorder
) -> None:
    track(recorder)
    assert lives("file").deliver(run_directory, "tests.support.stored:Naive", {})
    ledger = load_ledger(run_directory, "t")
    assert ledger is not None
    assert [change for change in ledger.changes if "journal only" in change] == [
        "the text eval/answer stays in the journal only: this tracker stores no texts",
        "the image eval/sample stays in the journal only: this tracker stores no images",
        "the histogram train/weights stays in the journal only: this tracker stores no histograms",
    ]


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_lost_file_costs_only_its_own_event(damage: str, run_directory: Path, recorder: Recorder) -> None:
    track(recorder)
    (path,) = (journal_path(run_directory).parent / "files").glob("*.txt")
    path.unlink() if damage == "removed" else path.write_text("something else")
    where = (run_directory, "fmstune.trackers.file_tracker:FileTracker", {"path": "stored.jsonl"})
    for forgive in (True, False, False):
        lives("file").deliver(*where, forgive=forgive)
    (line,) = report(run_directory, ["t"])
    assert line.delivered == line.total - 1
    assert f"FileLost: its file {path}" in str(line.error)
    assert len(lives("file").read("tests.support.media:from_file", run_directory.parent)) == 5
