"""A run recorded by an early version (commit cfabb63) can be read, reported and delivered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fmstune.config.load.load import load
from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.report import report
from fmstune.delivery.sync import sync
from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR
from fmstune.run.directory import run_state
from tests.sample_trackers import collected

CASE = Path(__file__).parent / "cases" / "earlier_run"
COLLECTOR = "tests.sample_trackers:Collector"


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CASE, tmp_path / "run")
    return tmp_path / "run"


def test_its_journal_and_ledgers_are_read(earlier: Path) -> None:
    events = list(JournalReader(earlier / TRACKING_DIR / JOURNAL_NAME))
    assert [event.seq for event in events] == list(range(1, 19))
    assert run_state(earlier) == "finished"
    lines = {
        line.tracker: (line.state, line.delivered, line.total) for line in report(earlier, ["file", "aim"])
    }
    assert lines == {"file": ("complete", 18, 18), "aim": ("complete", 18, 18)}


def test_all_its_events_reach_another_tracker(earlier: Path) -> None:
    (line,) = sync(earlier, COLLECTOR, {COLLECTOR: {"path": str(earlier / "c")}}, str)
    assert (line.state, line.delivered, line.total) == ("complete", 18, 18)
    calls = collected(earlier / "c")
    assert sorted(call["seq"] for call in calls if call.get("seq")) == list(range(1, 19))


def test_its_configuration_is_valid_today(earlier: Path) -> None:
    config = load(earlier / CONFIG_NAME)
    assert config.training["max_steps"] == 20
    assert config.adapter == "lora"
