"""Whatever user code tracks, the training continues and the journal stays strict JSON."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fmstune
from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.recorder import Recorder, active
from fmstune.trackers.records import Table


def no(*_: Any, **__: Any) -> NoReturn:
    raise ERRORS["now"]


ERRORS: dict[str, type[BaseException]] = {"now": RuntimeError}
"""What the hostile objects currently raise."""


class Mute:
    __str__ = __repr__ = __eq__ = __hash__ = __len__ = __iter__ = __float__ = no


class NoClass:
    @property
    def __class__(self) -> Any:
        no()

    @__class__.setter
    def __class__(self, _: Any) -> None: ...


class Text(str):
    __str__ = __repr__ = __eq__ = __hash__ = partition = no


class Number(float):
    __float__ = __repr__ = __eq__ = __int__ = no


class Items(dict[str, int]):
    items = keys = __iter__ = __str__ = __repr__ = no


class Lazy(Mapping[str, int]):
    __getitem__ = __iter__ = __len__ = __str__ = items = no


class Rows(list[Any]):
    __iter__ = no


class Half:
    def __iter__(self) -> Iterator[Any]:
        yield {"a": 1}
        no()


class Endless:
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self


HOSTILE = [
    *(Mute(), NoClass(), Text("loss"), Number(1.5), Items(a=1), Lazy(), Rows([1]), Half()),
    *(None, 1, 0.5, float("nan"), 10**5000, True, "name", "\ud800\0", b"\xff", ["x"], {"n": 1}, ("t", 1)),
    *(np.array([1, 2]), np.float32(2), object, {1: {2: {Mute: 1}}}, [[Mute()], Items(a=1)]),
]


def strict(path: Path) -> list[Any]:
    """The lines of the journal, parsed as strict JSON."""

    def refuse(word: str) -> NoReturn:
        raise AssertionError(word)

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    st.sampled_from(["track", "params", "table", "rows"]),
    st.lists(
        st.integers(0, len(HOSTILE) - 1), min_size=4, max_size=4
    ),  # hypothesis would compare the objects otherwise
    st.sampled_from([RuntimeError, SystemExit, asyncio.CancelledError, KeyboardInterrupt, KeyError]),
)
def test_hostile_values_names_stages_and_steps_raise_only_documented_value_errors(
    recorder: Recorder, call: str, chosen: list[int], error: type[BaseException]
) -> None:
    value, name, stage, step = (HOSTILE[index] for index in chosen)
    before = len(strict(recorder.journal.path))
    refused = False
    with pytest.MonkeyPatch.context() as patch, active(recorder):
        patch.setattr(signal, "getsignal", lambda _: no)  # a run has a handler of its own
        patch.setitem(ERRORS, "now", error)
        try:
            if call == "track":
                fmstune.track(value, name, stage, step=step)
            elif call == "params":
                fmstune.set_params(value, name)
            elif call == "table":
                fmstune.track_table([value, {"b": step}], name, stage, step=step)
            else:
                fmstune.track_table(value, name, stage, step=step)
        except ValueError:
            refused = True
    lines = strict(recorder.journal.path)
    recorded = not refused and not (call == "params" and value is None)
    assert len(lines) == before + recorded
    assert not refused or call != "track" or value is None or name is None
    events = list(JournalReader(recorder.journal.path))
    assert len(events) == len(lines) - 1  # without the header: each line is an event
    assert all(isinstance(part, str | None) for event in events for part in (event.name, event.stage))


def test_a_mapping_that_another_thread_modifies_is_tracked(recorder: Recorder) -> None:
    stats = {f"sample{n}": n for n in range(1_000)}
    done = threading.Event()

    def add() -> None:
        number = 0
        while not done.is_set():
            number += 1
            stats[f"new{number}"] = number
            stats.pop(f"new{number - 1000}", None)

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(5):
            recorder.set_params(stats, "stats")
    finally:
        done.set()
        thread.join()
    events = list(JournalReader(recorder.journal.path))
    assert all(event.values["sample999"] == 999 for event in events)
    assert len(events) == 5


def test_unreadable_parts_of_a_table_are_marked_in_it(recorder: Recorder) -> None:
    with active(recorder):
        fmstune.track_table(Half(), "half")
        fmstune.track_table([Items(a=1), Lazy()], "unreadable")
    half, unreadable = JournalReader(recorder.journal.path)
    assert half.rows == ({"a": 1}, {"…": "<the rows after these could not be read: RuntimeError>"})
    assert unreadable.rows == ({"a": 1}, {"value": "<Lazy>"})


def test_an_oversized_table_is_truncated_and_says_so(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.recorder.MOST_TABLE_VALUES", 1000)
    shared: Any = [1]
    for _ in range(7):
        shared = [shared, shared]
    recorder.track_table(Table("large", tuple({"a": shared} for _ in range(100))))
    (event,) = JournalReader(recorder.journal.path)
    assert event.rows[-1] == {"…": "<cut: more than 1,000 values>"}


@pytest.mark.parametrize("name", [["st"], {"s": 1}, ("t", 1), 5, True])
def test_a_name_that_is_no_string_is_stored_as_one(recorder: Recorder, name: Any) -> None:
    recorder.track(1.0, name, name)
    recorder.set_params({"a": 1}, name)
    recorder.track_table(Table(name, ({"a": 1},), name))
    metrics, params, table = JournalReader(recorder.journal.path)
    text = str(list(name)) if isinstance(name, tuple) else str(name)
    assert list(metrics.values) == [text]
    assert [metrics.stage, params.name, table.name, table.stage] == [text] * 4
