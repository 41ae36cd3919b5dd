"""Whatever happens on the way, in the end a service holds each event once: random sequences of events,
failures, kills, restarts and syncs, against a model of what must have been delivered.

The delivery runs here without its process: a kill is an exception that it does not know of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.delivery.deaths import note_death
from fmstune.delivery.deliver import Delivery, DeliveryFailed
from fmstune.delivery.ledger import TRACKING_DIR, Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.redaction import Redactor
from fmstune.trackers.base import MetricPoint, RunStart, Status, Tracker, TrackerRun
from tests.conftest import open_journal

Trouble = Literal["fine", "raise", "outage", "kill before", "kill after"]


class Killed(BaseException):
    """The process is gone in the middle of a call."""


@dataclass
class Service:
    """What is delivered to: it keeps what has arrived, whoever delivers it. `troubles` are those of the
    next calls; when there are none left, all is well."""

    troubles: Iterator[Trouble]
    poison: dict[int, tuple[int, bool]]
    """Events that are refused, how often, and whether with a kill, while all others are taken."""
    stored: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)
    statuses: list[str] = field(default_factory=list)
    kills_after: int = 0

    def call(self, seq: int | None, into: list[int]) -> None:
        """One call of the tracker, with its trouble before or after its effect."""
        left, kills = self.poison.get(seq or 0, (0, False))
        if seq is not None and left:
            self.poison[seq] = (left - 1, kills)
            raise Killed if kills else RuntimeError("not this one")
        trouble = next(self.troubles, "fine")
        if trouble == "raise":
            raise RuntimeError("no")
        if trouble == "outage":
            raise ConnectionResetError("gone")
        if trouble == "kill before":
            raise Killed
        if seq is not None:
            into.append(seq)
        if trouble == "kill after":
            self.kills_after += 1
            raise Killed


class ThroughTracker(Tracker):
    """Every call is safe at once, as in a database."""

    service: ClassVar[Service]

    def open(self, start: RunStart) -> TrackerRun:
        self.service.call(None, [])
        run = start.tracker_run_id or f"run-{len(self.service.runs)}"
        self.service.runs.add(run)
        return TrackerRun(run)

    def track_point(self, point: MetricPoint) -> None:
        assert point.seq is not None
        self.service.call(point.seq, self.service.stored)

    def close(self, status: Status, error: str | None = None) -> None:
        self.service.call(None, [])
        self.service.statuses.append(status)


class BufferingTracker(ThroughTracker):
    """Nothing is safe before `close`, as with an SDK that writes in blocks."""

    durable_on = "close"

    def open(self, start: RunStart) -> TrackerRun:
        self.service.pending = []
        return super().open(start)

    def track_point(self, point: MetricPoint) -> None:
        assert point.seq is not None
        self.service.call(point.seq, self.service.pending)

    def close(self, status: Status, error: str | None = None) -> None:
        super().close(status, error)
        self.service.stored += self.service.pending
        self.service.pending = []


def attempt(directory: Path, tracker: type[ThroughTracker], *, gone: bool, sync: bool = False) -> bool:
    """One life of a shipper: whether it came to its end."""
    ledger = load_ledger(directory, "t") or Ledger("t")
    made: Tracker = tracker("t")
    try:
        delivery = Delivery(directory, made, ledger)
        delivery.run(lambda: gone)
        if sync:
            delivery.retry_refused()
    except DeliveryFailed:
        return False
    except Killed:
        note_death(directory, "t", "its process died of SIGKILL")
        return False
    return True


@given(
    st.lists(st.sampled_from(["metrics", "metrics", "params", "deliver"]), max_size=25),
    st.lists(
        st.sampled_from(["fine", "fine", "fine", "raise", "outage", "kill before", "kill after"]), max_size=40
    ),
    st.dictionaries(st.integers(1, 20), st.tuples(st.integers(1, 9), st.booleans()), max_size=3),
    st.booleans(),
    st.sampled_from([ThroughTracker, BufferingTracker]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
def test_in_the_end_each_event_has_arrived_once_and_in_order(
    script: list[str],
    troubles: list[Trouble],
    poison: dict[int, tuple[int, bool]],
    ends: bool,
    tracker: type[ThroughTracker],
) -> None:
    service = Service(iter(troubles), dict(poison))
    tracker.service = service
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / TRACKING_DIR).mkdir()
        recorder = Recorder(open_journal(directory), Redactor({}))
        expected = []
        for step, action in enumerate(script):
            if action == "metrics":
                recorder.track_point(MetricPoint({"loss": 1.0}, "train", step))
                expected.append(recorder.journal.last_seq)
            elif action == "params":
                recorder.set_params({"step": step}, "params")
            else:
                attempt(directory, tracker, gone=True)
        if ends:
            recorder.close("finished")
        recorder.journal.close()
        for _ in range(len(troubles) + 2 * sum(often for often, _ in poison.values()) + 2):
            done = attempt(directory, tracker, gone=True, sync=True)
            ledger = load_ledger(directory, "t")
            if done and (ledger is None or not ledger.refused):
                break
        # A failure that the last life left behind is gone once all is well.
        assert attempt(directory, tracker, gone=True, sync=True)
        ledger = load_ledger(directory, "t")
        if not script or not recorder.journal.last_seq:
            return
        assert ledger is not None
        assert ledger.delivered == recorder.journal.last_seq
        assert ledger.refused == ()
        once = list(dict.fromkeys(service.stored))
        assert sorted(once) == expected
        # Only a kill between a call's effect and its entry in the ledger can repeat that one call.
        repeated = len(service.stored) - len(once)
        assert repeated <= (service.kills_after if tracker is ThroughTracker else 0)
        assert len(service.runs) <= 1 + service.kills_after
        if ends:
            assert service.statuses[-1] == "finished"
        before = list(service.stored)
        assert attempt(directory, tracker, gone=True, sync=True)
        assert service.stored == before
