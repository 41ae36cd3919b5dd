"""A journal whose lines are damaged, swapped or doubled: each event that can be read is delivered once, in
the context of the lines before it, whichever process delivers it; the others are counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping import deliver
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint
from tests.support.journals import journal_path, open_journal


class Ended(Exception):
    """The process of a delivery has ended between two events."""


class Keyed(Tracker):
    """Stores as Aim does: a value by its name, its step and the number of values there before it."""

    idempotent = True

    def __init__(
        self, values: dict[Any, int], params: dict[str, Mapping[str, Any]], failing: Iterator[bool]
    ) -> None:
        super().__init__("t")
        self._values, self._params, self._failing = values, params, failing

    def track_point(self, point: MetricPoint) -> None:
        if next(self._failing, False):
            raise ValueError("not this one, for now")
        repeats = point.repeats or {}
        for name, value in point.values.items():
            self._values[name, point.step, repeats.get(name, 0)] = value

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        self._params[name or "params"] = params or {}


EVENTS = st.lists(st.sampled_from(["loss", "loss", "both", "params"]), min_size=2, max_size=12)
DAMAGE = st.lists(
    st.tuples(st.sampled_from(["swapped", "doubled", "cut"]), st.integers(0, 11), st.integers(0, 11)),
    max_size=3,
)


def record(recorder: Recorder, events: list[str]) -> None:
    """Record events of two steps, each with a value of its own."""
    for number, kind in enumerate(events):
        if kind == "params":
            recorder.set_params({f"p{number}": number}, "data")
        else:
            names = ("loss", "reward") if kind == "both" else ("loss",)
            values = {name: 10 * number + at for at, name in enumerate(names)}
            recorder.track_point(MetricPoint(values, "train", number % 2))


def damaged(lines: list[bytes], damage: list[tuple[str, int, int]]) -> list[bytes]:
    for what, first, second in damage:
        at, other = first % len(lines), second % len(lines)
        if what == "swapped":
            lines[at], lines[other] = lines[other], lines[at]
        elif what == "doubled":
            lines.insert(other, lines[at])
        else:
            lines[at] = lines[at][:20] + b"\n"
    return lines


@given(EVENTS, DAMAGE, st.lists(st.integers(0, 5), max_size=4), st.lists(st.booleans(), max_size=12))
@example(["loss"] * 6, [("swapped", 1, 4)], [], [])
@example(["params"] * 6, [("swapped", 1, 4)], [2], [])
@example(["loss"] * 8, [("swapped", 1, 6), ("cut", 3, 0)], [1, 1, 1], [False, True])
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_readable_event_is_stored_once(
    events: list[str], damage: list[tuple[str, int, int]], lives: list[int], failures: list[bool]
) -> None:
    values: dict[Any, int] = {}
    params: dict[str, Mapping[str, Any]] = {}
    failing = iter(failures)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliver, "_AT_ONCE", 1)
        directory = Path(name)
        (directory / TRACKING_DIR).mkdir()
        journal = open_journal(directory)
        record(Recorder(journal, Redactor({})), events)
        journal.close()
        header, *lines = journal_path(directory).read_bytes().splitlines(keepends=True)
        lines = damaged(lines, damage)
        journal_path(directory).write_bytes(header + b"".join(lines))
        for batches in (*lives, *[None] * (len(failures) + 2)):
            looks = itertools.count()

            def gone(looks: Any = looks, batches: int | None = batches) -> bool:
                if batches is not None and next(looks) >= batches:
                    raise Ended
                return True

            with contextlib.suppress(Ended, DeliveryFailed):
                ledger = load_ledger(directory, "t") or Ledger("t")
                tracker = Keyed(values, params, failing)
                Delivery(directory, tracker, ledger, forgive=batches is None).run(gone)
        (line,) = report(directory, ["t"])

    left = {}
    for each in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(each)
            left[event["seq"]] = event
    wanted = [
        value for event in left.values() if event["kind"] == "metrics" for value in event["values"].values()
    ]
    assert sorted(values.values()) == sorted(wanted)
    merged = {
        key: value
        for event in left.values()
        if event["kind"] == "params"
        for key, value in event["values"].items()
    }
    assert params.get("data", {}) == merged
    assert (line.delivered, line.total) == (len(left), max(left, default=0))
