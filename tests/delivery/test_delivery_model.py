"""Whatever happens during delivery, a service ends up with each event that it does not refuse exactly once:
random sequences of events, failures, kills, outages, live deliveries and syncs, and random sets of refused
events, against a model of what must have been delivered.

Delivery runs in-process here. A kill is an exception after which nothing that the delivery does has any
effect.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping import deliver
from fmstune.delivery.shipping.crashes import can_progress, note_death
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint, Table
from tests.support.journals import close_journals, open_journal
from tests.support.model_service import Killed, Refusal, Service, Trouble, tracker_with


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
    """A live delivery without work is ended from outside."""


@dataclass
class World:
    """The directory of a run, its recorder, and the processes that deliver it."""

    directory: Path
    made: type[Tracker]
    recorder: Recorder
    service: ClassVar[Service]
    processes: int = 0

    def process(self, *, live: bool = False, forgive: bool = False) -> str:
        """One life of a shipper; returns how it ended."""
        self.processes += 1
        World.service.new_process()
        ledger = load_ledger(self.directory, "t") or Ledger("t")
        looks = iter(range(4))

        def gone() -> bool:
            if live and next(looks, None) is None:
                raise Ended
            return not live

        try:
            Delivery(self.directory, self.made("t"), ledger, forgive=forgive).run(gone, lambda seconds: None)
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
            return "again" if can_progress(self.directory, ledger, now) else "failed"
        return outcome

    def sync(self) -> str:
        """What `trackers sync` does: new processes while the last one reports that another may get
        further."""
        outcome = self.process(forgive=True)
        while outcome == "again":
            outcome = self.process()
            assert self.processes < 300, "sync does not terminate"
        return outcome

    @property
    def ledger(self) -> Ledger:
        return load_ledger(self.directory, "t") or Ledger("t")

    def set_aside(self) -> set[int]:
        suspicion = self.ledger.suspicion
        return set(suspicion.refused) | {seq for _, events in suspicion.suspects for seq in events}


def record(recorder: Recorder, action: str, step: int) -> int | None:
    """Record one event; returns its number if a tracker receives anything for it."""
    if action == "metrics":
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", step))
    elif action == "params":
        recorder.set_params({"step": step}, f"params {step}")
    elif action == "table":
        recorder.track_table(Table("samples", ({"text": "a"},), "eval", step))
    elif action == "text":
        recorder.record_item("text", "answer", "eval", step, {"text": "a"})
    elif action == "resume":
        recorder.close("interrupted")
        recorder.resumed(step)
        return None
    return recorder.journal.last_seq


ROWS = ("metrics", "table", "text")
EVENTS = ("metrics", "metrics", "metrics", "params", "table", "text", "resume")
DELIVERIES = ("live", "deliver", "sync")
LOSSES = ("snapshot", "removed", "older")
ACTIONS = (*EVENTS, *EVENTS, *DELIVERIES, *LOSSES)


def _tellable(guarantees: dict[str, Any]) -> dict[str, Any]:
    """A batch may have arrived though its call failed. A tracker that neither recognises its rows nor takes
    late ones cannot tell, and refuses them."""
    cannot = guarantees["buffers"] and not guarantees["idempotent"]
    return guarantees | {"takes_late": guarantees["takes_late"] or cannot}


GUARANTEES = st.fixed_dictionaries(
    {
        "idempotent": st.booleans(),
        "takes_late": st.booleans(),
        "durable_on": st.sampled_from(["call", "close"]),
        "knows_last": st.booleans(),
        "buffers": st.booleans(),
    }
).map(_tellable)
KNOWS_LAST = {
    "idempotent": True, "takes_late": True, "durable_on": "call", "knows_last": True, "buffers": False,
}  # fmt: skip
BUFFERS = {
    "idempotent": True, "takes_late": True, "durable_on": "call", "knows_last": False, "buffers": True,
}  # fmt: skip
FORGETS = {
    "idempotent": False, "takes_late": True, "durable_on": "call", "knows_last": False, "buffers": False,
}  # fmt: skip
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
    """Leave no journal open: each example has its own."""
    try:
        yield
    finally:
        close_journals()


def play(
    directory: Path, script: list[str], ends: bool, made: type[Tracker], service: Service
) -> tuple[World, dict[int, str]]:
    """The world after the script, and what a service without refusals would hold: events by kind."""
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
            # Without another event, no process would look at the storage.
            expected[record(world.recorder, "metrics", step) or 0] = "metrics"
        elif (seq := record(world.recorder, action, step)) is not None:
            expected[seq] = action
    if ends:
        world.recorder.close("finished")
    return world, expected


@given(st.lists(st.sampled_from(ACTIONS), max_size=25), TROUBLES, REFUSALS, st.booleans(), GUARANTEES)
@example(["metrics", "metrics", "metrics", "deliver"], ["fine", "raise", "kill after"], {}, True, KNOWS_LAST)
@example([*3 * ["metrics"], "params", "deliver"], [*4 * ["fine"], "raise"], {}, True, BUFFERS)
@example(
    ["metrics", "metrics", "deliver"], [*3 * ["fine"], "raise"], {}, False, BUFFERS | {"idempotent": False}
)
@example([*4 * ["metrics"], "live"], ["fine", "raise", "outage"], {3: "kill"}, False, FORGETS)
@example(
    [*2 * ["metrics"], "deliver", "live", *2 * ["metrics"], "live", "metrics", "live"],
    [*8 * ["fine"], "raise"],
    {},
    False,
    FORGETS | {"takes_late": False, "durable_on": "close"},
)
@SEARCH
def test_each_event_that_is_not_refused_arrives_exactly_once(
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
def test_each_event_arrives_once_though_the_storage_is_lost_repeatedly(
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
        else:  # a row that failed in several processes was skipped, and later ones delivered
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
        # A kill repeats a batch; and a storage that lacks an event that failed again, too, is filled again.
        if not (guarantees["buffers"] or service.storage):
            assert len(service.stored) - len(arrived) <= service.kills_after
        if made.idempotent or (made.durable_on == "close" and not service.killed_after_close):
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
def test_an_outage_refuses_nothing_and_what_it_delayed_arrives_without_a_sync(
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
