"""The ledger survives kills and damage, and reports what is known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fmstune.delivery.ledger import Ledger, all_ledgers, ledger_path, load_ledger
from fmstune.delivery.spans import spans_from_json, spans_of
from fmstune.delivery.suspicion import Mark, Suspicion


def test_a_ledger_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    ledger = Ledger(
        "aim", "m:C", {"repo": "."}, "/here", "id", "url", delivered=3, total=5, offset=120, safe_delivered=2,
        safe_offset=80,
        state="behind", suspicion=Suspicion().failed(4, "no", "outage", leads=True).refuse(1, "late"),
        missing=spans_of([2]), changes=("x is y",), careful=7, trying=5, last_row=3, error="e",
        error_time=1.5,
    )  # fmt: skip
    ledger.save(tmp_path)
    assert load_ledger(tmp_path, "aim") == ledger
    assert [entry.name for entry in ledger_path(tmp_path, "aim").parent.iterdir()] == ["aim.json"]


def test_a_tracker_named_by_a_dotted_path_has_a_ledger_too(tmp_path: Path) -> None:
    Ledger("my.module:Tracker/x").save(tmp_path)
    assert [ledger.tracker for ledger in all_ledgers(tmp_path)] == ["my.module:Tracker/x"]


def test_an_unused_tracker_has_no_ledger(tmp_path: Path) -> None:
    assert load_ledger(tmp_path, "aim") is None
    assert all_ledgers(tmp_path) == []


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    Ledger("aim", delivered=3).save(tmp_path)
    path = ledger_path(tmp_path, "aim")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    ledger = load_ledger(tmp_path, "aim")
    assert ledger is not None
    assert ledger.delivered == 3


def test_a_ledger_of_an_earlier_version_means_the_same(tmp_path: Path) -> None:
    path = ledger_path(tmp_path, "aim")
    path.parent.mkdir()
    earlier = {
        "tracker": "aim",
        "delivered": 9,
        "refused": [2, 3, 7],
        "missing": [5],
        "stuck_at": 8,
        "attempts": 2,
    }
    path.write_text(json.dumps({**earlier, "trying": 8, "error": "event 2 was refused: ValueError: no"}))
    ledger = load_ledger(tmp_path, "aim")
    assert ledger is not None
    assert list(ledger.suspicion.refused) == [2, 3, 7]
    assert list(ledger.missing) == [5]
    assert ledger.suspicion.cause(2) == "ValueError: no"
    assert ledger.suspicion.mark(8) == Mark(fails=2, leads=2, how="died")
    assert ledger.last_row == 9
    ledger.save(tmp_path)
    assert load_ledger(tmp_path, "aim") == ledger


def test_thousands_of_refused_events_fit_in_a_small_file(tmp_path: Path) -> None:
    suspicion = Suspicion()
    for seq in (*range(1, 4001, 2), *range(10_000, 20_000)):
        suspicion = suspicion.failed(seq, f"ValueError: {seq} " + "x" * 400, "raised", leads=True)
    suspicion = suspicion.proved().forgiven(in_order=False).proved()
    Ledger("aim", delivered=20_000, suspicion=suspicion).save(tmp_path)
    assert ledger_path(tmp_path, "aim").stat().st_size < 50_000
    ledger = load_ledger(tmp_path, "aim")
    assert ledger is not None
    assert ledger.suspicion.set_aside(20_000) == 12_000


@given(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)), st.integers(1, 40), st.integers(1, 40))
def test_spans_behave_like_sets_of_numbers(
    numbers: set[int], others: set[int], one: int, another: int
) -> None:
    spans = spans_of(numbers)
    low, high = sorted((one, another))
    assert list(spans) == sorted(numbers)
    assert len(spans) == len(numbers)
    assert (one in spans) == (one in numbers)
    assert list(spans.without(one)) == sorted(numbers - {one})
    assert list(spans.with_all(spans_of(others))) == sorted(numbers | others)
    assert list(spans.with_span(low, high)) == sorted(numbers | set(range(low, high + 1)))
    assert list(spans.up_to(one)) == sorted(number for number in numbers if number <= one)
    assert spans.within(low, high) == len(numbers & set(range(low, high + 1)))
    assert spans_from_json(spans.to_text()) == spans
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(spans.ranges))


@given(st.binary(max_size=200) | st.text().map(str.encode) | st.just(b'{"tracker":"aim","delivered":"many"}'))
def test_a_damaged_ledger_is_moved_aside_and_never_crashes_a_reader(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = ledger_path(directory, "aim")
        path.parent.mkdir()
        path.write_bytes(data)
        ledger = load_ledger(directory, "aim")
        assert ledger is None or isinstance(ledger.delivered, int)
        assert path.exists() == (ledger is not None)
        if ledger is None:
            assert path.with_name("aim.json.damaged").read_bytes() == data
