"""The calls of a tracker take all earlier events into account, whichever process delivered them."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.handover import HandOver
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Limits, MetricPoint, Table
from tests.support.journals import open_journal


class Calls(Tracker):
    """Records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[MetricPoint] = []
        self.tables: list[Table] = []
        self.params: list[tuple[str | None, Mapping[str, Any]]] = []

    def track_point(self, point: MetricPoint) -> None:
        self.points.append(point)

    def track_table(self, table: Table) -> None:
        self.tables.append(table)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        self.params.append((name, params or {}))


class Strict(Calls):
    limits: ClassVar[Limits] = Limits(name_chars="a-z_", params_change=False, ignores_case=True)


def give(tracker: Tracker, path: Path, *, after: int = 0, again: tuple[int, ...] = ()) -> HandOver:
    """What a process does that starts after event `after`: the events that follow, then those of `again`."""
    handover = HandOver(path, tracker, after)
    events = list(JournalReader(path))
    for event in events:
        if event.seq > after:
            handover.deliver(event)
    for event in events:
        if event.seq in again:
            handover.deliver(event)
    return handover


def test_params_of_a_namespace_merge_deeply_and_the_last_value_wins(recorder: Recorder) -> None:
    recorder.set_params({"rows": 8, "hash": {"train": "a"}}, "data")
    recorder.set_params({"source": "tickets", "hash": {"eval": "b"}, "rows": 9}, "data")
    whole = {"rows": 9, "hash": {"train": "a", "eval": "b"}, "source": "tickets"}
    for after in (0, 1):  # the second time as another process
        tracker = Calls()
        give(tracker, recorder.journal.path, after=after)
        assert tracker.params[-1] == ("data", whole)
    late = Calls()
    give(late, recorder.journal.path, after=2, again=(1,))
    assert late.params == [("data", whole)]  # a retried event does not undo later ones


def test_a_tracker_that_keeps_every_call_gets_the_original_params(recorder: Recorder) -> None:
    class Log(Calls):
        takes_params = "given"

    recorder.set_params({"a": 1}, "data")
    recorder.set_params({"b": 2}, "data")
    tracker = Log()
    give(tracker, recorder.journal.path)
    assert tracker.params == [("data", {"a": 1}), ("data", {"b": 2})]


def test_a_value_that_a_tracker_cannot_change_is_reported(recorder: Recorder) -> None:
    recorder.set_params({"a": {"b": 1}, "c": 1}, "data")
    recorder.set_params({"a": {"b": 2, "d": 3}, "c": 1}, "data")
    tracker = Strict()
    handover = give(tracker, recorder.journal.path)
    assert tracker.params[-1] == ("data", {"a": {"b": 1, "d": 3}, "c": 1})
    assert handover.changes == ("param a.b was given another value; the first one is kept",)


def test_values_of_one_step_are_numbered_across_processes_and_from_zero_after_a_resume(
    recorder: Recorder,
) -> None:
    for step in (1, 1, 2):
        recorder.track_point(MetricPoint({"reward": float(step), "loss": 1.0}, "train", step))
    recorder.track(3.0, "reward", "train", step=1)
    recorder.track_table(Table("samples", ({"a": 1},), "eval", 1))
    recorder.track_table(Table("samples", ({"a": 2},), "eval", 1))
    recorder.resumed(1)
    recorder.track(4.0, "reward", "train", step=2)
    recorder.track(5.0, "reward", "train", step=1)
    expected = [{}, {"reward": 1, "loss": 1}, {}, {"reward": 2}, {}, {"reward": 3}]
    for after, known in ((0, expected), (3, expected[3:]), (7, expected[4:])):
        tracker = Calls()
        give(tracker, recorder.journal.path, after=after)
        assert [point.repeats for point in tracker.points] == known
    late = Calls()
    give(late, recorder.journal.path, after=9, again=(2, 4, 6))
    assert [point.repeats for point in late.points] == [expected[1], expected[3]]
    assert [table.repeats for table in late.tables] == [1]


def test_two_names_that_a_service_would_merge_stay_separate_in_every_process(recorder: Recorder) -> None:
    for step, name in enumerate(["f1(a", "F1[a", "f1(a", "F1[a"]):
        recorder.track(float(step), name, "eval", step=step)
    names = []
    for after in range(4):
        tracker = Strict()
        changes = give(tracker, recorder.journal.path, after=after).changes
        names.append([name for point in tracker.points for name in point.values])
        assert len(changes) == 2
    assert names[0] == [names[0][0], names[0][1]] * 2
    assert names[0][0].casefold() != names[0][1].casefold()
    assert all(later == names[0][-len(later) :] for later in names)


class Fails(Strict):
    """Raises once at each event of `at`; takes points in batches if `whole`."""

    def __init__(self, at: set[int], whole: bool) -> None:
        super().__init__()
        self.at, self.whole = at, whole

    def track_points(self, points: Iterator[MetricPoint]) -> None:
        super().track_points(iter(list(points)) if self.whole else points)

    def track_point(self, point: MetricPoint) -> None:
        if self.seq in self.at:
            self.at.remove(self.seq)
            raise OSError("no room")
        super().track_point(point)


NAMES = st.lists(st.sampled_from(["loss", "lr", "Loss", "a b", "a.b"]), min_size=1, max_size=3, unique=True)
NUMBERS = st.sampled_from([0.5, 3, -1e300, math.inf, math.nan, 1 << 30, 1 << 70, True]) | st.floats()
STEPS = st.none() | st.integers(-3, 6) | st.sampled_from([1.5, 1 << 63, -(1 << 63)])
POINTS = st.builds(
    lambda names, values, step, stage: MetricPoint(dict(zip(names, values, strict=False)), stage, step),
    NAMES,
    st.lists(st.just(0.5) | NUMBERS, min_size=3, max_size=3),
    STEPS,
    st.sampled_from(["train", "eval", None, "a.b"]),
)
USUAL = st.integers(1, 9).map(lambda step: MetricPoint({"loss": 1 / step, "lr": 0.1}, "train", step))


@settings(max_examples=80)
@given(
    st.lists(USUAL | POINTS | st.integers(0, 4), min_size=1, max_size=12), st.sets(st.integers(1, 12)),
    st.booleans(), st.integers(0, 3),
)  # fmt: skip
def test_metrics_delivered_in_batches_equal_those_delivered_one_by_one(
    script: list[MetricPoint | int], failing: set[int], whole: bool, after: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, TRACKING_DIR).mkdir()
        recorder = Recorder(open_journal(Path(folder)), Redactor({}))
        for each in script:
            recorder.resumed(each) if isinstance(each, int) else recorder.track_point(each)
        path = recorder.journal.path
        events = [event for event in JournalReader(path) if event.seq > after]
        each_alone, together = Strict(), Fails(failing, whole)
        one, other = HandOver(path, each_alone, after), HandOver(path, together, after)
        for event in events:
            one.deliver(event)
        while events:
            stretch = list(itertools.takewhile(lambda event: event.kind == "metrics", events))
            given = other.deliver_all(stretch, math.inf).events if stretch else 0
            events = events[given:]
            if events and given < len(stretch or events):  # it failed, or cannot be batched with others
                other.deliver(events.pop(0))
    assert repr(together.points) == repr(each_alone.points)
    assert sorted(one.changes) == sorted(other.changes)


class StopsEarly(Calls):
    """Takes three points at a time, and has no space for the third."""

    def track_points(self, points: Iterator[MetricPoint]) -> None:
        super().track_points(itertools.islice(points, 2))
        next(points, None)


def test_the_last_point_taken_before_an_early_return_is_delivered_again(recorder: Recorder) -> None:
    for step in range(1, 8):
        recorder.track(1 / step, "loss", "train", step=step)
    events, tracker = list(JournalReader(recorder.journal.path)), StopsEarly()
    handover = HandOver(recorder.journal.path, tracker, 0)
    while events:
        given = handover.deliver_all(events, math.inf).events
        assert given == min(2, len(events) - 1)
        events = events[given:]
        if len(events) == 1:
            handover.deliver(events.pop())
    assert [point.step for point in tracker.points if point.step is not None][:7] == [*range(1, 8)]


class OnlyTogether(Tracker):
    """Overrides only `track_points`."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def track_points(self, points: Iterator[MetricPoint]) -> None:
        self.steps += [point.step for point in points]


class Counts(OnlyTogether):
    """Overrides it by calling the base class."""

    def track_points(self, points: Iterator[MetricPoint]) -> None:
        taken = list(points)
        super().track_points(iter(taken))
        Tracker.track_points(self, iter(taken))


def test_a_tracker_with_only_track_points_also_gets_points_that_come_one_by_one(
    recorder: Recorder,
) -> None:
    for step in range(1, 4):
        recorder.track(1 / step, "loss", "train", step=step)
    for kind in (OnlyTogether, Counts):
        tracker = kind()
        give(tracker, recorder.journal.path)
        assert tracker.steps == [1, 2, 3]
        assert tracker.takes_whole_points
