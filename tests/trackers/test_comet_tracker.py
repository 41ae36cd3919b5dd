"""Comet's tracker offline: the SDK's own `comet upload` accepts its archives."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.trackers.comet.items import Events
from fmstune.trackers.comet_tracker import CometTracker
from fmstune.trackers.records import Media, MetricPoint, RunStart, Table, TrackerOptionError
from tests.support.comet_archives import archives
from tests.support.comet_cloud import CometCloud
from tests.support.shipping import delivered_by

START = RunStart("name", ".", run_id="id-1", new_run_id="a" * 24, sessions=("one",))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def delivered(directory: Path) -> Ledger:
    return delivered_by(CometTracker("comet", {"mode": "offline"}), directory)


def opened(start: RunStart = START) -> tuple[CometTracker, str]:
    tracker = CometTracker("comet", {"mode": "offline"})
    found = tracker.open(start)
    assert found.id is not None
    return tracker, found.id


def give(tracker: CometTracker, *seqs: int) -> None:
    for seq in seqs:
        tracker.seq = seq
        tracker.track_point(MetricPoint({"loss": seq / 8}, "train", seq, None, 1e9 + seq, seq, {}))


def losses(folder: Path) -> list[float]:
    return [value for archive in archives(folder) for name, _, value in archive.points()]


def zips(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in (folder / ".cometml-runs").glob("*"))


@pytest.fixture
def upload(monkeypatch: pytest.MonkeyPatch) -> Callable[[CometCloud, Path], bool]:
    """`comet upload` of one archive to this stand-in."""
    from comet_ml.offline import upload_single_offline_experiment

    def send(cloud: CometCloud, archive: Path) -> bool:
        monkeypatch.setenv("COMET_URL_OVERRIDE", cloud.url)
        monkeypatch.setenv("COMET_API_KEY", cloud.key)
        return bool(upload_single_offline_experiment(str(archive), cloud.key, force_upload=False))

    return send


def test_comet_upload_merges_the_archives_of_a_run_into_one_experiment(
    recorder: Recorder, run_directory: Path, tmp_path: Path, upload: Callable[[CometCloud, Path], bool]
) -> None:
    recorder.set_params({"a": {"lr": 1e-4}}, "config")
    for step in (1, 2):
        recorder.track_point(MetricPoint({"loss": step / 8, "bad": float("nan")}, "train", step))
    recorder.track_table(Table("samples", ({"prompt": 'a "b",\nc', "tokens": None},), "eval", 2))
    recorder.close("interrupted")
    first = delivered(run_directory)
    folder = tmp_path / ".cometml-runs"
    archive = folder / f"{first.run_id}-1.zip"
    assert first.note == f"offline, send it with `comet upload {archive}`"
    recorder.resumed(1)
    recorder.track_point(MetricPoint({"loss": 9.0}, "train", 2))
    recorder.close("finished")
    second = delivered(run_directory)
    assert second.run_id == first.run_id
    assert zips(tmp_path) == ["1.zip", "2.zip"]
    assert second.note == f"offline, send it with `comet upload {archive} {folder / f'{first.run_id}-2.zip'}`"

    with CometCloud() as cloud:
        assert not upload(cloud, folder / f"{first.run_id}-2.zip")  # there is no experiment to continue
        assert upload(cloud, archive)
        assert upload(cloud, folder / f"{first.run_id}-2.zip")
        assert not upload(cloud, archive)  # it was uploaded already
        run = cloud.run
        assert (run.key, run.project, run.alive) == (first.run_id, "fmstune", False)
        assert run.values("train/loss") == [1 / 8, 2 / 8, 9.0]
        assert run.values("train/bad") == ["NaN", "NaN"]
        assert run.params == {"config|a|lr": "0.0001"}
        assert (run.others["Name"], run.others["status"]) == ("run", "finished")
        (table,) = run.assets
        assert table["data"].decode() == '"prompt","tokens"\n"a ""b"",\nc",\n'
        assert table["fileName"] == "eval/samples.step2.csv"


def test_the_next_process_continues_what_a_killed_one_left(tmp_path: Path) -> None:
    first, key = opened()
    give(first, 1, 2)
    first.flush()
    give(first, 3)  # lost with the process
    (staged,) = (tmp_path / ".cometml-runs").iterdir()
    with (staged / "messages.json").open("a") as file:
        file.write('{"type": "metric_msg", "pay')  # and this is a truncated line of it
    again, same = opened(dataclasses.replace(START, tracker_run_id=key, redelivery=True))
    give(again, 1, 2, 3)
    again.close("finished")
    assert same == key
    assert losses(tmp_path) == [1 / 8, 2 / 8, 3 / 8]
    assert zips(tmp_path) == ["1.zip"]


def test_a_process_killed_after_finishing_its_archive_leaves_no_second_one(tmp_path: Path) -> None:
    first, key = opened()
    give(first, 1)
    first.close("finished")
    again, _ = opened(dataclasses.replace(START, tracker_run_id=key, redelivery=True))
    give(again, 1)
    again.close("finished")
    assert losses(tmp_path) == [1 / 8]
    assert zips(tmp_path) == ["1.zip"]


def test_archives_that_were_uploaded_and_removed_are_not_recreated_and_the_report_says_so(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    first = delivered(run_directory)
    (tmp_path / ".cometml-runs" / f"{first.run_id}-1.zip").unlink()
    recorder.resumed(1)
    recorder.track_point(MetricPoint({"loss": 0.5}, "train", 2))
    recorder.close("finished")
    assert delivered(run_directory).run_id == first.run_id
    (archive,) = archives(tmp_path)
    assert archive.about["resume_strategy"] == "get_or_create"
    assert losses(tmp_path) == [0.5]
    (line,) = report(run_directory, ["comet"])
    where = tmp_path / ".cometml-runs"
    assert (
        f"{where} no longer has the archives with its earlier events; the new one is without them"
        in line.changes
    )


def test_a_renamed_metric_is_reported_again_when_its_event_is_redelivered() -> None:
    event = MetricPoint({"n" * 80: 1.0}, "s" * 80, 1, None, 1e9, 1, {})
    said = []
    for _ in range(2):
        tracker, _ = opened(START)
        tracker.seq = 1
        tracker.track_point(event)
        tracker.flush()  # and killed before the report was recorded
        said.append(tracker.adapted)
    assert said[0] == said[1]
    assert "is called" in said[0][0]


def test_the_second_of_two_diverging_resumes_gets_its_own_experiment(tmp_path: Path) -> None:
    first, key = opened()
    give(first, 1, 2)
    first.close("interrupted")
    then = dataclasses.replace(START, tracker_run_id=key, run_id="id-2", after=2)
    child, same = opened(then)
    give(child, 3)
    child.close("finished")
    _, own = opened(dataclasses.replace(then, run_id="id-3"))
    assert (same == key, own == key) == (True, False)


def test_points_that_comet_would_sample_and_names_it_would_cut_are_reported(tmp_path: Path) -> None:
    tracker, _ = opened()
    long = "n" * 80
    for seq in range(1, 15_003):
        tracker.seq = seq
        tracker.track_point(MetricPoint({"loss": 0.5}, "train", seq, None, 1e9, seq, {}))
    tracker.seq = seq + 1
    tracker.track_point(MetricPoint({long: 1.0}, "s" * 80, 1, None, 1e9, seq + 1, {}))
    tracker.close("finished")
    sampled, renamed = tracker.adapted
    assert sampled == "metric train/loss has more than 15000 points, of which Comet keeps a sample"
    assert renamed.startswith(f"{'s' * 80}/{long} is called {'s' * 80}/nnn")
    assert max(len(name) for archive in archives(tmp_path) for name, _, _ in archive.points()) == 100


def test_values_beyond_comets_bins_are_counted_in_the_outermost_ones_and_reported(tmp_path: Path) -> None:
    tracker, _ = opened()
    tracker.seq = 1
    tracker.track_media(Media("histogram", "h", counts=(4, 0, 1), low=-1e23, high=1e23, step=1))
    tracker.close("finished")
    assert "histogram h has values beyond 1e20, which are in Comet's outermost bins" in tracker.adapted
    (asset,) = archives(tmp_path)[0].assets("histogram3d")
    assert sum(count for _, count in json.loads(asset.data)["index_values"]) == 5


def test_a_disabled_run_stores_nothing_and_says_so(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_AUTO_LOG_DISABLE", "true")
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("finished")
    ledger = delivered_by(CometTracker("comet"), run_directory)
    assert ledger.note == (
        "disabled by COMET_AUTO_LOG_DISABLE: nothing is sent to Comet and nothing is kept for it"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_unwritable_folder_is_an_error_and_nothing_is_written_elsewhere(
    recorder: Recorder, run_directory: Path
) -> None:
    tracker = CometTracker("comet", {"mode": "offline", "dir": "/proc/here"})
    with pytest.raises(TrackerOptionError, match="/proc cannot be written to; choose another folder"):
        tracker.open(START)


def test_standalone_it_writes_what_it_receives(tmp_path: Path) -> None:
    tracker = CometTracker("comet", {"mode": "offline"})
    tracker.set_params({"lr": 0.1, "path": Path("a")}, "config")
    tracker.track(1.0, "loss", "train", step=1)
    tracker.close("finished")
    (archive,) = archives(tmp_path)
    assert list(archive.points()) == [("train/loss", 1, 1.0)]
    assert archive.params() == {"config|lr": "0.1", "config|path": "a"}


@pytest.mark.parametrize("given", [[], [1], [1, 2, 3], [3, 1, 2], [1, 5, 4, 9, 2]])
def test_events_are_recognized_by_their_numbers(given: list[int]) -> None:
    held = Events()
    for seq in given:
        held.add(seq)
    again: Any = Events(held.spans)
    assert [seq for seq in range(12) if seq in again] == sorted(given)
    assert again.last == max(given, default=0)
