"""After an outage, delivery is as fast as before: only the events that were on their way are delivered one by
one, since one of them may have been at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.crashes import note_death
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import RunStart, TrackerRun
from tests.support.shipping import delivered_by, record_steps


class Batches(Tracker):
    """Sends its points with `flush`, in one request, as MLflow's and trackio's trackers do."""

    idempotent = True
    works_for = 1_000_000
    waiting: list[int | None]
    requests: list[list[int | None]]
    emptied = False

    def holds(self, last: int) -> bool:
        return not self.emptied

    def open(self, start: RunStart) -> TrackerRun:
        self.waiting, self.requests = [], []
        return TrackerRun("one")

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        self.waiting.append(step)

    def set_params(self, params: Any, name: str | None = None) -> None:
        """It keeps none."""

    def flush(self) -> None:
        if len(self.requests) >= self.works_for:
            raise ConnectionError("connection refused")
        if self.waiting:
            self.requests.append(self.waiting)
            self.waiting = []


def after_an_outage(recorder: Recorder, directory: Path) -> None:
    record_steps(recorder, 1, 5)
    tracker = Batches("b")
    tracker.works_for = 0
    with pytest.raises(DeliveryFailed, match="connection refused"):
        Delivery(directory, tracker, Ledger("b")).run(lambda: True)


def after_a_kill(recorder: Recorder, directory: Path) -> None:
    record_steps(recorder, 1, 5)
    Ledger("b").save(directory)
    note_death(directory, "b", "its process died of SIGKILL")


def after_an_outage_that_emptied_the_storage(recorder: Recorder, directory: Path) -> None:
    after_an_outage(recorder, directory)
    tracker = Batches("b")
    tracker.emptied = True
    with pytest.raises(DeliveryFailed, match="its storage was removed"):
        Delivery(directory, tracker, ledger_of(directory)).run(lambda: True)


@pytest.mark.parametrize("trouble", [after_an_outage, after_a_kill])
def test_only_what_was_on_its_way_is_delivered_one_by_one_afterwards(
    trouble: Any, recorder: Recorder, run_directory: Path
) -> None:
    trouble(recorder, run_directory)
    record_steps(recorder, 6, 400)
    recorder.close("finished")
    tracker = Batches("b")
    delivered_by(tracker, run_directory)
    assert [step for request in tracker.requests for step in request] == [*range(1, 401)]
    assert tracker.requests[:5] == [[1], [2], [3], [4], [5]]
    assert len(tracker.requests) < 15


def test_an_emptied_storage_is_filled_as_fast_as_ever(recorder: Recorder, run_directory: Path) -> None:
    after_an_outage_that_emptied_the_storage(recorder, run_directory)
    recorder.close("finished")
    tracker = Batches("b")
    delivered_by(tracker, run_directory)
    assert tracker.requests == [[1, 2, 3, 4, 5]]


def test_after_a_later_outage_a_new_process_begins_at_once_and_is_careful_again(
    recorder: Recorder, run_directory: Path
) -> None:
    after_an_outage(recorder, run_directory)
    record_steps(recorder, 6, 20)
    recorder.close("finished")
    tracker = Batches("b")
    tracker.works_for = 5
    with pytest.raises(DeliveryFailed) as failed:
        Delivery(run_directory, tracker, ledger_of(run_directory)).run(lambda: True)
    assert failed.value.again
    assert tracker.requests == [[1], [2], [3], [4], [5]]
    assert (ledger_of(run_directory).delivered, ledger_of(run_directory).careful) == (5, 20)
    tracker = Batches("b")
    delivered_by(tracker, run_directory)
    assert tracker.requests == [[step] for step in range(6, 21)]


def ledger_of(directory: Path) -> Ledger:
    """The ledger of the tracker `b`."""
    ledger = load_ledger(directory, "b")
    assert ledger is not None
    return ledger
