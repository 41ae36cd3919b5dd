"""A tracker that fails in the middle of the values of an event is not given the earlier ones again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.base import Tracker
from fmstune.trackers.compat import OldShapeTracker
from fmstune.trackers.records import MetricPoint, Status

VALUES = [(name, step) for step in (1, 2, 3, 4) for name in ("a", "b", "c", "d")]


class Posts(Tracker):
    """Posts each value to a service that is down from a call on, for some calls."""

    taken: ClassVar[list[tuple[str, int | None]]]
    calls: ClassVar[Iterator[bool]]

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        if next(self.calls, False):
            raise ConnectionResetError("gone")
        self.taken.append((name, int(metric)))

    def close(self, status: Status, error: str | None = None) -> None:
        if next(self.calls, False):
            raise ConnectionResetError("gone")


class OldPosts:
    """The same in an older shape."""

    def track(self, metric: Any, name: str, stage: str) -> None:
        Posts("posts").track(metric, name, stage)


@pytest.mark.parametrize("down", [1, 2, 40])
@pytest.mark.parametrize("made", [Posts, lambda name: OldShapeTracker(name, OldPosts())])
def test_each_value_arrives_once(made: Any, down: int, run_directory: Path, recorder: Recorder) -> None:
    for step in (1, 2, 3, 4):
        recorder.track_point(MetricPoint({name: float(step) for name in "abcd"}, "train", step))
    recorder.close("finished")
    Posts.taken, Posts.calls = [], iter([*6 * [False], *down * [True]])
    for _ in range(50):
        ledger = load_ledger(run_directory, "posts") or Ledger("posts")
        with contextlib.suppress(DeliveryFailed):
            Delivery(run_directory, made("posts"), ledger, forgive=True).run(lambda: True)
        (line,) = report(run_directory, ["posts"])
        if line.state == "complete":
            break
    assert line.state == "complete"
    assert sorted(Posts.taken) == sorted(VALUES)
