"""Runs that start in the same second, where no storage exists yet, all arrive at the first attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MetricPoint
from tests.support.journals import open_journal
from tests.support.nurseries import lives

NAMES = ["a", "b", "c"]
TRACKER_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "aim": ("aimstack_tracker:AimStackTracker", {"repo": "."}),
    "mlflow": (
        "mlflow_tracker:MlflowTracker", {"tracking_uri": "sqlite:///mlflow.db"},
    ),
    "tensorboard": (
        "tensorboard_tracker:TensorBoardTracker", {"dir": "tb"},
    ),
    "file": ("file_tracker:FileTracker", {"path": "stored.jsonl"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACKER_CASES)
def test_three_simultaneous_runs_create_one_storage(name: str, tmp_path: Path) -> None:
    for run in NAMES:
        (tmp_path / run / TRACKING_DIR).mkdir(parents=True)
        recorder = Recorder(open_journal(tmp_path / run), Redactor({}))
        recorder.set_params({"run": run}, "params")
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
        recorder.close("finished")
        recorder.journal.close()
    reference, options = TRACKER_CASES[name]
    at_once = (f"fmstune.trackers.{reference}", options, NAMES)
    assert lives(name).read("tests.support.at_once:deliver", tmp_path, *at_once) == [0, 0, 0]
    for run in NAMES:
        (line,) = report(tmp_path / run, ["t"])
        assert (line.state, line.delivered) == ("complete", 3)
