"""The records that are passed between fmstune and a tracker."""

from __future__ import annotations

from fmstune.trackers.records import MOST_SHOWN, TrackerRun


def test_a_url_or_note_of_a_megabyte_is_truncated_and_says_so() -> None:
    run = TrackerRun("id", url="y" * 1_000_000, note="n" * 1_000_000)
    for text in (run.url, run.note):
        assert text is not None
        assert len(text) < MOST_SHOWN + 50
        assert text.endswith("… (1000000 characters)")
    assert TrackerRun("id", "https://host/run").url == "https://host/run"
