"""Whatever happens on the way, in the end a service holds each event once that it does not refuse: random
sequences of events, failures, kills, outages, live deliveries and syncs, and random sets of refused events,
against a model of what must have been delivered.

The delivery runs here without its process. A kill is an exception after which nothing that the delivery does
has an effect any more.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping import deliver
from fmstune.delivery.shipping.crashes import may_get_further, note_death
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.standing import DeliveryFailed
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint, RunStart, Status, Table, TrackerRun
from tests.support.journals import close_journals, open_journal

Trouble = Literal["fine", "raise", "outage", "base", "kill before", "kill after", "removed", "older"]
Refusal = Literal["raise", "outage", "base", "exit", "kill", "hang", "break"]
"""How the service fails at an event that it refuses; `break` raises and leaves the SDK unusable."""


class Killed(BaseException):
    """The process is gone in the middle of a call."""


class Odd(BaseException):
    """What is no `Exception`."""


@dataclass
class Service:
    """What is delivered to: it keeps what has arrived, whoever delivers it. `troubles` are those of the
    next calls; when there are none left, all is well but for the events in `refusals`."""

    troubles: Iterator[Trouble] = field(default_factory=lambda: iter(()))
    refusals: dict[int, Refusal] = field(default_factory=dict)
    down: bool = False
    opens: bool = False
    stored: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    last_row: int = 0
    pending_row: int = 0
    runs: set[str] = field(default_factory=set)
    statuses: list[str] = field(default_factory=list)
    kills_after: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    death: str = ""
    broken: bool = False
    rows: set[int] = field(default_factory=set)
    storage: int = 0
    older: list[int] = field(default_factory=list)
    lacking: set[int] = field(default_factory=set)
    """What it held, and somebody has removed."""
    opened: int = 0

    def lose(self, how: str, *, knows_again: bool) -> None:
        """Somebody removes the storage, or replaces it by an older state of it. Where the service does not
        know events again, what is left of them would be there twice."""
        left = self.older if how == "older" and knows_again else []
        self.lacking |= set(self.stored) - set(left)
        self.storage, self.stored, self.older = self.storage + 1, list(left), list(left)
        self.last_row = max(self.rows & set(left), default=0)
        self.runs.clear()

    def new_process(self) -> None:
        """Begin a process: nothing of an earlier one is left in it."""
        self.death, self.broken, self.pending, self.pending_row = "", False, [], 0

    def die(self, cause: str) -> None:
        self.death = cause
        raise Killed

    def call(self, seq: int | None, *, knows_again: bool, opening: bool = False) -> None:
        """One call of the tracker, with what goes wrong before it has an effect."""
        if self.death:
            raise Killed
        if self.broken or (self.down and not opening):
            raise RuntimeError("nothing works")
        if seq is not None:
            self.attempts[seq] += 1
            self._refuse(self.refusals.get(seq))
        trouble = next(self.troubles, "fine")
        if trouble == "raise":
            raise RuntimeError("no")
        if trouble == "base":
            raise Odd("no")
        if trouble == "outage":
            raise ConnectionResetError("gone")
        if trouble in ("removed", "older"):
            self.lose(trouble, knows_again=knows_again)
        if trouble == "kill before":
            self.die("its process died of SIGKILL")
        self.dies_now = trouble == "kill after"

    def called(self) -> None:
        """The end of a call, after its effect."""
        if self.dies_now:
            self.kills_after += 1
            self.die("its process died of SIGKILL")

    def _refuse(self, how: Refusal | None) -> None:
        if how == "break":
            self.broken = True
        if how in ("raise", "break"):
            raise ValueError("not this one")
        if how == "outage":
            raise TimeoutError("not this one")
        if how == "base":
            raise Odd("not this one")
        if how == "exit":
            raise SystemExit("not this one")
        if how in ("kill", "hang"):
            self.die("it did not return" if how == "hang" else "its process died of SIGSEGV")


class ModelTracker(Tracker):
    """A tracker of `service`; what it guarantees is set by `tracker_with`."""

    service: ClassVar[Service]
    storage: int | None = None

    def open(self, start: RunStart) -> TrackerRun:
        service = self.service
        service.call(None, knows_again=self.idempotent, opening=service.opens)
        run = start.tracker_run_id
        if run not in service.runs:
            service.opened += 1
            run = f"run-{service.opened}"
            service.runs.add(run)
        service.called()
        return TrackerRun(run)

    def holds(self, last: int) -> bool:
        service = self.service
        if service.death:
            raise Killed
        if self.storage is None:  # the run was opened a moment ago
            self.storage = service.storage
            return not any(seq <= last for seq in service.lacking)
        return self.storage == service.storage

    def track_point(self, point: MetricPoint) -> None:
        self._take(row=True)

    def track_table(self, table: Table) -> None:
        self._take(row=True)

    def set_params(self, params: Any, name: str | None = None) -> None:
        self._take(row=False)

    def _take(self, *, row: bool) -> None:
        service, seq = self.service, self.seq
        assert seq is not None
        service.call(seq, knows_again=self.idempotent)
        self.storage = service.storage if self.storage is None else self.storage
        if self._writes_to_nowhere:
            service.called()
            return
        held = service.pending if self.durable_on == "close" else service.stored
        known = self.idempotent and seq in held
        late = row and not self.takes_late and seq <= max(service.last_row, service.pending_row)
        if not known and not late:
            held.append(seq)
            service.rows |= {seq} if row else set()
            if self.durable_on == "call":
                service.lacking.discard(seq)
            if row and self.durable_on == "call":
                service.last_row = seq
            elif row:
                service.pending_row = seq
        service.called()

    @property
    def _writes_to_nowhere(self) -> bool:
        """As to a file that has no name any more. One that knows events again writes to what has come in its
        place; where rows have to come in order, or come twice, that would be past mending."""
        mended = self.takes_late and self.idempotent
        return not mended and self.storage not in (None, self.service.storage)

    def close(self, status: Status, error: str | None = None) -> None:
        service = self.service
        service.call(self.seq, knows_again=self.idempotent)
        if self._writes_to_nowhere:
            service.pending = []
        new = [seq for seq in service.pending if not (self.idempotent and seq in service.stored)]
        service.stored += new
        service.lacking -= set(new)
        service.last_row = max(service.last_row, service.pending_row)
        service.pending, service.pending_row = [], 0
        service.statuses.append(status)
        service.called()


def tracker_with(service: Service, *, idempotent: bool, takes_late: bool, durable_on: str) -> type[Tracker]:
    """A class of tracker of `service` with these guarantees."""
    guarantees = {"idempotent": idempotent, "takes_late": takes_late, "durable_on": durable_on}
    return type("Made", (ModelTracker,), {"service": service, **guarantees})


@pytest.fixture(scope="module", autouse=True)
def _a_killed_process_writes_nothing() -> Iterator[None]:
    save = Ledger.save

    def save_if_alive(ledger: Ledger, directory: Path) -> None:
        if not World.service.death:
            save(ledger, directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "save", save_if_alive)
        patch.setattr(deliver, "POLL_SECONDS", 0)
        yield


class Ended(Exception):
    """A live delivery that has nothing to do is ended from outside."""


@dataclass
class World:
    """A run's directory, its recorder, and the processes that deliver it."""

    directory: Path
    made: type[Tracker]
    recorder: Recorder
    service: ClassVar[Service]
    processes: int = 0

    def process(self, *, live: bool = False, forgive: bool = False) -> str:
        """One life of a shipper: how it ended."""
        self.processes += 1
        World.service.new_process()
        ledger = load_ledger(self.directory, "t") or Ledger("t")
        looks = iter(range(4))

        def gone() -> bool:
            if live and next(looks, None) is None:
                raise Ended
            return not live

        try:
            Delivery(self.directory, self.made("t"), ledger, forgive=forgive).run(gone)
            outcome = "done"
        except Ended:
            outcome = "ended"
        except DeliveryFailed as error:
            outcome = "again" if error.again else "failed"
        except Killed:
            outcome = ""
        if cause := World.service.death:
            World.service.death = ""
            now = note_death(self.directory, "t", cause)
            return "again" if may_get_further(self.directory, ledger, now) else "failed"
        return outcome

    def sync(self) -> str:
        """What `trackers sync` does: processes while they say that another may get further."""
        outcome = self.process(forgive=True)
        while outcome == "again":
            outcome = self.process()
            assert self.processes < 300, "it never ends"
        return outcome

    @property
    def ledger(self) -> Ledger:
        return load_ledger(self.directory, "t") or Ledger("t")

    def set_aside(self) -> set[int]:
        suspicion = self.ledger.suspicion
        return set(suspicion.refused) | {seq for _, events in suspicion.suspects for seq in events}


def record(recorder: Recorder, action: str, step: int) -> int | None:
    """Record one event; its number, if a tracker is given anything for it."""
    if action == "metrics":
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", step))
    elif action == "params":
        recorder.set_params({"step": step}, f"params {step}")
    elif action == "table":
        recorder.track_table(Table("samples", ({"text": "a"},), "eval", step))
    elif action == "resume":
        recorder.close("interrupted")
        recorder.resumed(step)
        return None
    return recorder.journal.last_seq


ROWS = ("metrics", "table")
EVENTS = ("metrics", "metrics", "metrics", "params", "table", "resume")
DELIVERIES = ("live", "deliver", "sync")
LOSSES = ("snapshot", "removed", "older")
ACTIONS = (*EVENTS, *EVENTS, *DELIVERIES, *LOSSES)
GUARANTEES = st.fixed_dictionaries(
    {
        "idempotent": st.booleans(),
        "takes_late": st.booleans(),
        "durable_on": st.sampled_from(["call", "close"]),
    }
)
REFUSALS = st.dictionaries(
    st.integers(1, 20),
    st.sampled_from(["raise", "raise", "outage", "base", "exit", "kill", "hang", "break"]),
    max_size=6,
)
TROUBLES = st.lists(
    st.sampled_from(
        [
            "fine", "fine", "fine", "fine", "raise", "outage", "base", "kill before", "kill after", "removed",
            "older",
        ]
    ),
    max_size=30,
)  # fmt: skip
SEARCH = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=int(os.environ.get("FMSTUNE_EXAMPLES", 40)),
)


@contextlib.contextmanager
def all_closed() -> Iterator[None]:
    """Leave no journal open, of which there is one for each example."""
    try:
        yield
    finally:
        close_journals()


def play(
    directory: Path, script: list[str], ends: bool, made: type[Tracker], service: Service
) -> tuple[World, dict[int, str]]:
    """The world after the script, and what a service without refusals would hold: events by their kind."""
    (directory / TRACKING_DIR).mkdir()
    World.service = service
    world = World(directory, made, Recorder(open_journal(directory), Redactor({})))
    expected: dict[int, str] = {}
    for step, action in enumerate(script):
        if action in ("live", "deliver"):
            world.process(live=action == "live")
        elif action == "sync":
            world.sync()
        elif action == "snapshot":
            service.older = list(service.stored)
        elif action in ("removed", "older"):
            service.lose(action, knows_again=made.idempotent)
            # What nobody delivers to any more nobody looks at.
            expected[record(world.recorder, "metrics", step) or 0] = "metrics"
        elif (seq := record(world.recorder, action, step)) is not None:
            expected[seq] = action
    if ends:
        world.recorder.close("finished")
    return world, expected


@given(st.lists(st.sampled_from(ACTIONS), max_size=25), TROUBLES, REFUSALS, st.booleans(), GUARANTEES)
@SEARCH
def test_in_the_end_each_event_that_is_not_refused_has_arrived_once(
    script: list[str],
    troubles: list[Trouble],
    refusals: dict[int, Refusal],
    ends: bool,
    guarantees: dict[str, Any],
) -> None:
    check(script, troubles, refusals, ends, guarantees)


@given(
    st.lists(st.sampled_from(["metrics", "params", *DELIVERIES, *LOSSES]), min_size=6, max_size=25),
    st.lists(
        st.sampled_from(["fine", "fine", "fine", "kill after", "raise", "removed", "older"]), min_size=8
    ),
    st.dictionaries(st.integers(1, 20), st.sampled_from(["raise", "kill"]), max_size=1),
    st.booleans(),
    GUARANTEES,
)
@SEARCH
def test_so_it_has_when_the_storage_is_lost_again_and_again(
    script: list[str],
    troubles: list[Trouble],
    refusals: dict[int, Refusal],
    ends: bool,
    guarantees: dict[str, Any],
) -> None:
    check(["metrics", "metrics", "deliver", *script], troubles, refusals, ends, guarantees)


def check(
    script: list[str],
    troubles: list[Trouble],
    refusals: dict[int, Refusal],
    ends: bool,
    guarantees: dict[str, Any],
) -> None:
    service = Service(iter(troubles), dict(refusals))
    made = tracker_with(service, **guarantees)
    with tempfile.TemporaryDirectory() as name, all_closed():
        world, expected = play(Path(name), script, ends, made, service)
        last = world.recorder.journal.last_seq
        if not last:
            return
        service.troubles = iter(())
        failed_before = Counter(service.attempts)
        world.processes = 0
        world.sync()

        refused = {seq for seq in refusals if seq in expected or (ends and seq == last)}
        aside = world.set_aside()
        assert aside >= refused
        if made.takes_late:
            assert aside == refused
        else:  # a row that failed in several processes was passed over, and others came after it
            for seq in aside - refused:
                assert expected[seq] in ROWS
                assert failed_before[seq] >= 3
        assert world.processes <= 10 + 10 * len(refused)
        if not (ends and last in refused):
            assert not world.ledger.suspicion.suspects

        arrived = set(service.stored)
        nothing_safe = made.durable_on == "close" and ends and last in refused
        if not nothing_safe:
            assert arrived == set(expected) - aside
        assert len(service.stored) - len(arrived) <= service.kills_after
        if made.durable_on == "close" or made.idempotent:
            assert len(service.stored) == len(arrived)
        (line,) = report(world.directory, ["t"])
        silent = last - len(expected) - (ends and last in refused)
        if not nothing_safe:
            assert (line.delivered, line.total) == (len(arrived) + silent, last)
        assert line.delivered <= len(arrived) + silent
        assert (line.state == "complete") == (not aside)
        if refused and not troubles:
            assert f"event {min(aside)}" in str(line.error) or line.state == "behind"
        if ends and last not in refused:
            assert service.statuses[-1] == "finished"

        before, tries = sorted(service.stored), Counter(service.attempts)
        world.sync()
        assert sorted(service.stored) == before
        assert world.set_aside() == aside
        assert all(service.attempts[seq] - tries[seq] <= 3 for seq in refused - {last})

        service.refusals = {}
        assert world.sync() == "done"
        for seq in world.set_aside():
            assert not made.takes_late
            assert expected[seq] in ROWS
            assert max(service.stored) > seq
        assert set(service.stored) == set(expected) - world.set_aside()


@given(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=20), st.lists(st.booleans(), max_size=12),
       st.booleans(), GUARANTEES.filter(lambda guarantees: guarantees["takes_late"]))  # fmt: skip
@SEARCH
def test_an_outage_refuses_nothing_and_what_it_held_up_arrives_by_itself(
    events: list[str], lives: list[bool], opens: bool, guarantees: dict[str, Any]
) -> None:
    service = Service(down=True, opens=opens)
    made = tracker_with(service, **guarantees)
    with tempfile.TemporaryDirectory() as name, all_closed():
        world, expected = play(Path(name), events, False, made, service)
        for live in lives:
            world.process(live=live)
        assert not world.ledger.suspicion.refused
        service.down = False
        world.recorder.track_point(MetricPoint({"loss": 1.0}, "train", 99))
        world.recorder.close("finished")
        expected[world.recorder.journal.last_seq - 1] = "metrics"
        outcomes = (world.process(live=True) for _ in range(3))
        assert "done" in outcomes
        assert sorted(service.stored) == sorted(expected)
        assert world.ledger.state == "complete"
