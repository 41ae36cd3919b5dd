"""Consecutive events that an Aim run refuses block no others, and every event reported as delivered is
stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.sync import sync
from fmstune.trackers.aimstack_tracker import AimStackTracker
from fmstune.trackers.records import MetricPoint
from tests.support.readers import read_aim


class PickyAim(AimStackTracker):
    """Aim, but it refuses params of one namespace and points of some steps until the file `well` exists."""

    def track_point(self, point: MetricPoint) -> None:
        if point.step in (3, 4, 5, 8) and not Path("well").exists():
            raise OverflowError("Python int too large to convert to C long")
        super().track_point(point)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        if name == "odd" and not Path("well").exists():
            raise TypeError("not supported")
        super().set_params(params, name)


def test_consecutive_refused_events_are_skipped_in_an_aim_run_and_added_by_a_later_sync(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Under the built-in name it is forked from an interpreter that has Aim's SDK.
    made = Job("aim", f"{__name__}:{PickyAim.__name__}", {"repo": str(tmp_path)})
    fleet = Fleet([made], check_within=None, close_timeout=300)
    fleet.start_delivery(run_directory)
    recorder.set_params({"a": 1}, "odd")
    recorder.set_params({"b": 2}, "even")
    for step in range(1, 10):
        recorder.track_point(MetricPoint({"loss": 1 / step}, "train", step))
    recorder.close("finished")
    fleet.finish()
    (line,) = report(run_directory, ["aim"])
    assert (line.state, line.delivered, line.total) == ("failed", 7, 12), line
    assert line.error == "5 events were refused, the first of them event 1: TypeError: not supported"
    (run,) = read_aim(tmp_path)
    assert [step for step, _ in run.points["loss", "train"]] == [1, 2, 6, 7, 9]
    assert (run.params["even"], run.params["status"]) == ({"b": 2}, "finished")
    assert "odd" not in run.params

    recorder.journal.close()
    (tmp_path / "well").touch()
    (line,) = sync(run_directory, None, {}, str)
    assert (line.state, line.delivered) == ("complete", 12), line
    (run,) = read_aim(tmp_path)
    assert [step for step, _ in run.points["loss", "train"]] == list(range(1, 10))
    assert run.params["odd"] == {"a": 1}
