"""W&B's tracker online, with the real SDK against a stand-in for the cloud."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from pathlib import Path

import pytest
import wandb

from fmstune.trackers.records import RunStart, TrackerError, TrackerRun
from fmstune.trackers.wandb import files as wandb_files
from fmstune.trackers.wandb_tracker import WandbTracker
from tests.support.moments import acting
from tests.support.readers import read_wandb_offline, wandb_offline_dirs
from tests.support.wandb_cloud import WandbCloud
from tests.support.wandb_isolation import FAKE_KEY, children, point, refused_url, start

pytestmark = pytest.mark.usefixtures("isolated_wandb")


def test_an_online_run_arrives_completely_and_a_redelivery_adds_only_what_was_missing(
    cloud: WandbCloud,
) -> None:
    tracker = WandbTracker(tracker_config={"tags": ("x",), "project": "demo"})
    opened = tracker.open(start())
    assert opened.id is not None
    assert opened.url == f"{cloud.url}/ada/demo/runs/{opened.id}"
    tracker.set_params({"r": 8}, "params")
    for seq in (2, 3, 4):
        tracker.track_point(point(seq))
    tracker.close("interrupted")
    run = cloud.runs[opened.id]
    assert run.steps == [2, 3, 4]
    assert run.history[0]["train/loss"] == 0.5
    assert run.params == {"params": {"r": 8}}
    assert run.exit_code == 255
    assert run.fields["tags"] == ["x"]
    assert run.fields["program"] == "fmstune"

    again = WandbTracker(tracker_config={"project": "demo"})
    assert again.open(start(opened.id, redelivery=True)).id == opened.id
    again.set_params({"r": 8, "team": "nlp"}, "params")
    for seq in (2, 3, 4, 5):
        again.track_point(point(seq))
    again.close("finished")
    assert run.steps == [2, 3, 4, 5]
    assert run.params == {"params": {"r": 8, "team": "nlp"}}
    assert run.summary["fmstune/status"] == "finished"
    assert run.exit_code == 0


@pytest.mark.parametrize("status", [401, 403])
def test_a_run_that_the_cloud_stops_accepting_is_not_reported_as_delivered(
    cloud: WandbCloud, status: int
) -> None:
    tracker = WandbTracker()
    tracker.open(start())
    cloud.answer = status
    tracker.track_point(point(2))
    with pytest.raises(TrackerError, match=f"did not take the whole run: .*HTTP {status}"):
        tracker.close("finished")


def test_rows_that_a_login_page_answered_are_not_delivered_and_arrive_later(cloud: WandbCloud) -> None:
    tracker = WandbTracker()
    opened = tracker.open(start())
    cloud.login_page = True
    for seq in (2, 3):
        tracker.track_point(point(seq))
    with pytest.raises(TrackerError, match="did not take the whole run"):
        tracker.close("finished")
    cloud.login_page = False
    again = WandbTracker()
    again.open(start(opened.id, redelivery=True))
    for seq in (2, 3):
        again.track_point(point(seq))
    again.close("finished")
    assert cloud.runs[opened.id or ""].steps == [2, 3]


def test_a_run_from_the_environment_with_other_points_is_an_error_and_loses_no_point(
    cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "shared")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    tracker = WandbTracker()
    assert tracker.open(start()).id == "shared"
    for seq in (1, 2):
        tracker.track_point(point(seq))
    tracker.close("finished")
    with pytest.raises(TrackerError, match="holds other points; unset WANDB_RUN_ID"):
        WandbTracker().open(start(own="another"))
    assert cloud.runs["shared"].steps == [1, 2]


def test_a_delivery_without_its_ledger_continues_in_the_run_from_the_environment_that_it_created(
    cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "shared")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    for last in (2, 3):
        tracker = WandbTracker()
        tracker.open(start())
        for seq in range(1, last + 1):
            tracker.track_point(point(seq))
        tracker.close("finished")
    assert cloud.runs["shared"].steps == [1, 2, 3]


def _deliver(start: RunStart, *seqs: int) -> TrackerRun:
    tracker = WandbTracker()
    opened = tracker.open(start)
    for seq in seqs:
        tracker.track_point(point(seq))
    tracker.close("finished")
    return opened


def test_a_run_resumed_elsewhere_continues_the_wandb_run_and_a_second_one_gets_its_own(
    cloud: WandbCloud,
) -> None:
    first = _deliver(start(own="parent"), 1, 2, 3).id
    assert first is not None
    assert _deliver(start(first, own="child", after=3), 4, 5).id == first
    assert _deliver(start(first, own="child", after=3, redelivery=True), 4, 5, 6).id == first
    assert cloud.runs[first].steps == [1, 2, 3, 4, 5, 6]
    second = _deliver(start(first, own="other child", after=3), 4, 5)
    assert second.id not in (None, first)
    assert f"another run continues {first}" in (second.note or "")
    assert cloud.runs[first].steps == [1, 2, 3, 4, 5, 6]
    assert cloud.runs[second.id or ""].steps == [4, 5]


def test_offline_a_second_run_from_one_checkpoint_also_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = _deliver(start(own="parent"), 1, 2).id
    assert _deliver(start(first, own="child", after=2), 3).id == first
    assert _deliver(start(first, own="child", after=2), 4).id == first
    second = _deliver(start(first, own="other child", after=2), 3)
    assert second.id not in (None, first)
    assert f"another run continues {first}" in (second.note or "")


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_second_of_two_diverging_resumes_gets_its_own(
    mode: str, monkeypatch: pytest.MonkeyPatch, cloud: WandbCloud
) -> None:
    """Its folder was restored from a backup: the numbers 3 and 4 now belong to other events."""
    monkeypatch.setenv("WANDB_MODE", mode)

    def begun(run: str | None, *sessions: str) -> RunStart:
        return dataclasses.replace(start(run, own="one"), sessions=("one", *sessions))

    first = _deliver(begun(None), 1, 2).id
    assert _deliver(begun(first, "later"), 3, 4).id == first
    assert _deliver(begun(first, "later", "last"), 5).id == first
    restored = _deliver(begun(first, "again"), 3, 4)
    assert restored.id not in (None, first)
    assert f"another run continues {first}" in (restored.note or "")


def test_a_redelivery_removes_no_folder_that_another_run_has_open() -> None:
    place = Path("wandb/offline-run-20260101_000000-abc")
    place.mkdir(parents=True)
    (place / "fmstune-open").write_text("abc\ntwo")
    wandb_files.remove_cut_off(Path("wandb"), start("abc", own="one"))
    assert place.exists()
    wandb_files.remove_cut_off(Path("wandb"), start("abc", own="two"))
    assert not place.exists()


def test_another_run_may_end_while_a_redelivery_looks_at_its_folder() -> None:
    place = Path("wandb/offline-run-20260101_000000-abc")
    place.mkdir(parents=True)
    for moment in itertools.count(1):
        (place / "fmstune-open").write_text("abc\ntwo")
        with acting(moment, (place / "fmstune-open").unlink, wandb_files, pathlib) as ended:
            wandb_files.remove_cut_off(Path("wandb"), start("abc", own="one"))
        if not ended:
            break
    assert place.exists()


def test_a_name_that_is_too_long_for_wandb_is_cut_with_a_note(cloud: WandbCloud) -> None:
    tracker = WandbTracker(tracker_config={"name": "n" * 1_000_000})
    opened = tracker.open(start())
    tracker.close("finished")
    assert cloud.runs[opened.id or ""].fields["displayName"] == "n" * 128
    assert "cut to 128 characters" in (opened.note or "")


def test_standalone_rows_are_numbered_by_wandb() -> None:
    before = children()
    tracker = WandbTracker(tracker_config={"mode": "offline", "name": "mine"})
    tracker.track(0.5, "loss", "train", step=10)
    tracker.track(0.25, "loss", "train", step=20)
    tracker.close("finished")
    assert children() == before  # wandb-core writes its buffer when it ends
    (run,) = map(read_wandb_offline, wandb_offline_dirs(Path()))
    rows = [(row["_step"], row["train/global_step"], row["train/loss"]) for row in run.history]
    assert rows == [(0, 10, 0.5), (1, 20, 0.25)]
    assert run.fields["display_name"] == "mine"


def test_opening_online_without_credentials_is_an_error_and_sends_no_request(
    cloud: WandbCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(TrackerError, match=r"no API key for .* run `wandb login`"):
        WandbTracker().open(start())
    assert not cloud.requests


def test_opening_a_run_without_a_server_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", refused_url())
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    with pytest.raises(wandb.errors.CommError):
        WandbTracker().open(start())
