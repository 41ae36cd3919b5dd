"""A delivery that is interrupted before anything was delivered leaves nothing behind for the next one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint, RunStart, TrackerRun
from tests.support.journals import open_journal


class Refusing(Tracker):
    """Like W&B: what it received is durable once its run is closed."""

    durable_on = "close"
    takes_late = False

    def __init__(self) -> None:
        super().__init__("refusing")
        self.starts: list[RunStart] = []

    def open(self, start: RunStart) -> TrackerRun:
        self.starts.append(start)
        return TrackerRun(id="abc")

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        raise TypeError("unhashable type: 'list'")


def test_a_process_that_follows_a_failure_at_the_first_event_is_told_of_a_redelivery(
    recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"a": 1})
    tracker = Refusing()
    for _ in range(3):
        ledger = load_ledger(run_directory, "refusing") or Ledger("refusing")
        with contextlib.suppress(DeliveryFailed):
            Delivery(run_directory, tracker, ledger).run(lambda: True)
    # With this flag, the tracker removes the run that was opened and never closed.
    assert [start.redelivery for start in tracker.starts[:3]] == [False, True, True]


def test_a_run_that_ended_before_its_first_event_is_complete(recorder: Recorder, run_directory: Path) -> None:
    recorder.journal.close()  # as if its process was killed
    tracker = Refusing()
    Ledger("refusing").save(run_directory)
    (line,) = report(run_directory, ["refusing"])
    assert line.state == "behind"
    Delivery(run_directory, tracker, Ledger("refusing")).run(lambda: True)
    (line,) = report(run_directory, ["refusing"])
    assert (line.state, line.line()) == ("complete", "0/0")
    assert tracker.starts == []
    # It may be resumed.
    again = Recorder(open_journal(run_directory))
    again.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    (line,) = report(run_directory, ["refusing"])
    assert (line.state, line.total) == ("behind", 1)
