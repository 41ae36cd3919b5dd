"""The ledger survives kills and damage, and says what is known."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fmstune.delivery.ledger import Ledger, all_ledgers, ledger_path, load_ledger


def test_a_ledger_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    ledger = Ledger(
        "aim", "m:C", {"repo": "."}, "/here", "id", "url", delivered=3, total=5, offset=120, safe_delivered=2,
        safe_offset=80,
        state="behind", refused=(1,), missing=(2,), changes=("x is y",), stuck_at=4, attempts=1,
        careful=True, trying=5, error="e",
        error_time=1.5,
    )  # fmt: skip
    ledger.save(tmp_path)
    assert load_ledger(tmp_path, "aim") == ledger
    assert [entry.name for entry in ledger_path(tmp_path, "aim").parent.iterdir()] == ["aim.json"]


def test_a_tracker_named_by_a_dotted_path_has_a_ledger_too(tmp_path: Path) -> None:
    Ledger("my.module:Tracker/x").save(tmp_path)
    assert [ledger.tracker for ledger in all_ledgers(tmp_path)] == ["my.module:Tracker/x"]


def test_there_is_no_ledger_of_a_tracker_that_was_not_used(tmp_path: Path) -> None:
    assert load_ledger(tmp_path, "aim") is None
    assert all_ledgers(tmp_path) == []


def test_what_a_later_version_adds_is_ignored(tmp_path: Path) -> None:
    Ledger("aim", delivered=3).save(tmp_path)
    path = ledger_path(tmp_path, "aim")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    ledger = load_ledger(tmp_path, "aim")
    assert ledger is not None
    assert ledger.delivered == 3


@given(st.binary(max_size=200) | st.text().map(str.encode) | st.just(b'{"tracker":"aim","delivered":"many"}'))
def test_a_damaged_ledger_is_set_aside_and_never_crashes_a_reader(data: bytes) -> None:
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
