"""Classes of older shapes, and with constructors of their own, are used as they are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmstune.trackers import registry
from fmstune.trackers.base import Tracker
from fmstune.trackers.compat import OldShapeTracker
from fmstune.trackers.records import MetricPoint, TrackerOptionError


def test_a_tracker_with_the_old_interface_is_called_with_three_arguments(tmp_path: Path) -> None:
    tracker = registry.build_tracker("tests.sample_trackers:OldShape", "old", {"path": str(tmp_path / "o")})
    assert isinstance(tracker, OldShapeTracker)
    tracker.track(1.0, "loss", "train", step=3)
    assert (tmp_path / "o").read_text() == '[1.0, "loss", "train"]\n'


class Bare:
    """Has no constructor."""

    def track(self, metric: float, name: str, stage: str) -> None:
        self.got = (metric, name, stage)


class Named(Bare):
    def __init__(self, name: str) -> None:
        self.called = name


class Anything(Bare):
    def __init__(self, **arguments: object) -> None:
        self.arguments = arguments


class Steps(Tracker):
    """Has the older `track`, and takes whole points."""

    points: list[MetricPoint]

    def track(self, metric, name, stage=None):  # type: ignore[no-untyped-def, override]
        raise NotImplementedError

    def track_point(self, point: MetricPoint) -> None:
        self.points = [*getattr(self, "points", ()), point]


def test_the_constructor_of_an_older_class_gets_what_it_takes() -> None:
    for cls in (Bare, Named, Anything):
        tracker = registry.get_tracker(f"{__name__}:{cls.__name__}")
        tracker.track(1.0, "loss", "train", step=3)
        assert tracker.get_hf_callback() is tracker.get_hf_callback()
        assert tracker.got == (1.0, "loss", "train")  # type: ignore[attr-defined]
    with pytest.raises(TrackerOptionError, match="has no options"):
        registry.get_tracker(f"{__name__}:Named", path="x")
    assert registry.get_tracker(f"{__name__}:Anything", path="x").arguments["tracker_config"] == {"path": "x"}  # type: ignore[attr-defined]


class OfItsOwn(Tracker):
    def __init__(self, name: str | None = None, tracker_config: object = None) -> None:
        self.got: list[object] = []

    def track(self, metric: object, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage)
        self.got.append((metric, self.step, self.seq))


def test_a_class_whose_constructor_forgets_its_base_can_be_used() -> None:
    tracker = registry.get_tracker(f"{__name__}:OfItsOwn")
    assert tracker.get_hf_callback() is tracker.get_hf_callback()
    tracker.track(1.0, "loss")
    assert tracker.got == [(1.0, None, None)]  # type: ignore[attr-defined]


def test_an_older_class_that_takes_whole_points_gets_them_with_their_steps() -> None:
    tracker = registry.build_tracker(f"{__name__}:Steps", "mine", {})
    point = MetricPoint({"loss": 1.0}, "train", 3, seq=7)
    tracker.track_point(point)
    tracker.track_points(iter([point]))
    assert tracker.points == [point, point]  # type: ignore[attr-defined]
    assert tracker.takes_whole_points


def test_a_bare_tracker_does_nothing_but_refuses_invalid_metrics() -> None:
    tracker = Tracker()
    assert tracker.name == "none"
    tracker.track(1.0, "loss", "train")
    tracker.set_params({"a": 1})
    tracker.set_params(None)
    for metric, name in ((None, "loss"), (1.0, None)):
        with pytest.raises(ValueError, match="needs a metric and its name"):
            tracker.track(metric, name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a mapping"):
        tracker.set_params([1])  # type: ignore[arg-type]


def test_trackers_share_no_state() -> None:
    first, second = registry.get_tracker("file", path="a"), registry.get_tracker("file", path="b")
    first.seq = 5
    assert second.seq is None
    assert first.config.path != second.config.path
