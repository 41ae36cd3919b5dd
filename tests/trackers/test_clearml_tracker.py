"""ClearML's tracker: against a stand-in for its server, which cannot run here, and in offline sessions, which
ClearML's own SDK reads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmstune
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.clearml import server as clearml_server
from fmstune.trackers.clearml_tracker import ClearmlTracker
from fmstune.trackers.records import MetricPoint, RunStart, Table
from fmstune.trackers.registry import get_tracker
from tests.support.clearml_cloud import ClearmlCloud
from tests.support.clearml_read import media, session, stored
from tests.support.nurseries import lives
from tests.support.shipping import delivered_by

OFFLINE = {"offline": True, "dir": "sessions"}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[ClearmlCloud]:
    with ClearmlCloud() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def delivered(directory: Path, **options: Any) -> Ledger:
    """The ledger after a delivery in this process."""
    return delivered_by(ClearmlTracker("clearml", options), directory)


def delivered_in_the_end(directory: Path, **options: Any) -> Ledger:
    """The ledger after delivering in this process until it succeeds."""
    for _ in range(5):
        try:
            return delivered(directory, **options)
        except DeliveryFailed:
            continue
    raise AssertionError(load_ledger(directory, "clearml"))


def tracked(recorder: Recorder, directory: Path) -> Path:
    """Track one of each kind; returns a folder that was handed over."""
    (given := directory.parent / "given").mkdir()
    (given / "ü.bin").write_bytes(bytes(range(256)))
    with active(recorder):
        fmstune.set_params({"a": {"b": 1e-4}, "files": ["x", 1]}, "params")
        recorder.track_point(MetricPoint({"loss": 2.0, "train_loss": 1.5}, "train", 7, 0.5))
        fmstune.track(3.0, "loss", "eval", step=7)
        fmstune.track(0.25, "loss", "eval", step=7)
        fmstune.track(0.5, "score")
        fmstune.track_table([{"prompt": "hi", "n": 1}], "samples", stage="eval", step=7)
        fmstune.track_text("<b>", "answer", "eval", step=7)
        fmstune.track_image(np.zeros((1, 1, 3), np.uint8), "sample", "eval", step=7)
        fmstune.track_histogram([0.0, 1.0, 1.0], "weights", "train", step=7, bins=2)
        fmstune.track_artifact(given, "things", type="dataset")
    return given


POINTS = [
    ["eval/loss", 7, 0.25], ["eval/loss", 7, 3.0], ["score", None, 0.5], ["train/loss", 7, 2.0],
    ["train/train_loss", 7, 1.5], ["train_loss", None, 1.5],
]  # fmt: skip
MEDIA = [
    ["histogram", "train/weights", 7, [[1, 2], 0.0, 1.0]],
    ["image", "eval/sample", 7, [[[[0, 0, 0]]], ""]],
    ["text", "eval/answer", 7, "<b>"],
]


def test_an_online_task_is_stored_once_in_the_form_that_clearml_users_expect(
    cloud: ClearmlCloud, recorder: Recorder, run_directory: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("CLEARML_PROJECT", "nlp/tuning")
    tracked(recorder, run_directory)
    recorder.close("failed", "ValueError: no")
    ledger = delivered(run_directory, tags=("x",))
    Ledger("clearml", run_id=ledger.run_id).save(run_directory)  # like one that was restored from a backup
    assert delivered(run_directory, tags=("x",)).run_id == ledger.run_id
    (task,) = cloud.tasks.values()
    assert ledger.url == f"{cloud.url}/projects/{task['project']}/experiments/{task['id']}/output/log"
    assert (task["name"], task["tags"], cloud.projects[task["project"]]) == ("run", ["x"], "nlp/tuning")
    assert (task["status"], task["status_reason"]) == ("failed", "ValueError: no")
    assert (task["script"], task["configuration"], task["runtime"]) == (
        {},
        {},
        {},
    )  # no code and no packages
    events = cloud.events(task["id"])
    assert {(event["metric"], event["variant"], event["iter"]) for event in events} >= {
        ("train", "loss", 7), ("eval", "loss", 7), ("eval", "loss (2)", 7),
        ("Summary", "train_loss", -(2**31)),
    }  # fmt: skip
    found = stored(task, events)
    assert sorted(found["points"], key=repr) == sorted(POINTS, key=repr)
    assert found["params"]["*"]["params.a.b"] == "0.0001"
    assert task["hyperparams"]["params"]["a.b"]["type"] == "float"
    assert found["tables"] == [["eval/samples", 7, ["prompt: hi\nn: 1"]]]
    for name, data in cloud.files.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(data)
    assert sorted(media(events, tmp_path / "files")) == MEDIA
    (artifact,) = task["execution"]["artifacts"]
    assert (artifact["key"], artifact["type"], artifact["content_size"]) == ("things/ü.bin", "dataset", 256)
    assert cloud.files[artifact["uri"].removeprefix(f"{cloud.url}/")] == bytes(range(256))
    assert capfd.readouterr() == ("", "")
    assert cloud.secret_key not in (run_directory / "tracking" / "clearml.json").read_text()


def test_a_resumed_task_continues_its_iterations_and_merges_its_params(
    cloud: ClearmlCloud, recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"a": {"x": 1}}, "params")
    for step in (1, 2, 3):
        recorder.track_point(MetricPoint({"loss": float(step)}, "train", step))
    recorder.close("interrupted")
    first = delivered(run_directory)
    (task,) = cloud.tasks.values()
    assert task["status"] == "stopped"
    recorder.resumed(1)
    recorder.set_params({"a": {"y": 2}}, "params")
    recorder.track_point(MetricPoint({"loss": 9.0}, "train", 2))
    recorder.close("finished")
    assert delivered(run_directory).run_id == first.run_id
    found = stored(task, cloud.events(task["id"]))
    assert sorted(found["points"]) == [["train/loss", 1, 1.0], ["train/loss", 2, 9.0], ["train/loss", 3, 3.0]]
    assert found["params"]["*"] == {"params.a.x": "1", "params.a.y": "2"}
    assert found["status"] == "finished"


def deleted(cloud: ClearmlCloud, task: dict[str, Any]) -> None:
    del cloud.tasks[task["id"]]


def published(cloud: ClearmlCloud, task: dict[str, Any]) -> None:
    task["status"] = "published"


def reset(cloud: ClearmlCloud, task: dict[str, Any]) -> None:
    task["status"] = "created"
    cloud.forget(task["id"])


@pytest.mark.parametrize("what", [deleted, published, reset])
def test_changes_to_the_task_on_the_server_lose_nothing(
    what: Callable[[ClearmlCloud, dict[str, Any]], None], cloud: ClearmlCloud, recorder: Recorder,
    run_directory: Path,
) -> None:  # fmt: skip
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    recorder.journal.append("resume", {"step": 1})
    first = delivered(run_directory)
    (task,) = list(cloud.tasks.values())
    what(cloud, task)
    recorder.track_point(MetricPoint({"loss": 2.0}, "train", 2))
    recorder.close("finished")
    ledger = delivered_in_the_end(run_directory)
    now = cloud.tasks[str(ledger.run_id)]
    assert (ledger.run_id == first.run_id) == (what is reset)
    assert sorted(stored(now, cloud.events(now["id"]))["points"]) == [
        ["train/loss", 1, 1.0], ["train/loss", 2, 2.0]
    ]  # fmt: skip


def test_a_task_that_was_stopped_in_the_web_ui_still_accepts_params(
    cloud: ClearmlCloud, tmp_path: Path
) -> None:
    tracker = ClearmlTracker()
    tracker.open(RunStart("run", ".", run_id="r"))
    (task,) = cloud.tasks.values()
    task["status"] = "stopped"
    tracker.seq = 1
    tracker.set_params({"a": 1}, "params")
    tracker.close("finished")
    assert (task["hyperparams"]["params"]["a"]["value"], task["status"]) == ("1", "completed")


def test_events_that_the_server_refuses_are_not_counted_as_delivered(
    cloud: ClearmlCloud, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clearml_server, "_LONGEST_BODY", 10_000)
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.track_table(Table("large", ({"text": "x" * 10_000},), "eval", 1))
    recorder.track_point(MetricPoint({"loss": 2.0}, "train", 2))
    recorder.close("finished")
    ledger = Ledger("clearml")
    for _ in range(5):
        tracker = ClearmlTracker("clearml", {})
        with contextlib.suppress(DeliveryFailed):
            ledger = Delivery(run_directory, tracker, load_ledger(run_directory, "clearml") or ledger).run(
                lambda: True
            )
    assert "the server accepts 15 MB at once" in str(ledger.suspicion.cause(2))
    (task,) = cloud.tasks.values()
    assert len(stored(task, cloud.events(task["id"]))["points"]) == 2


def test_two_diverging_resumes_of_a_run_are_two_tasks(
    cloud: ClearmlCloud, recorder: Recorder, run_directory: Path
) -> None:
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    first = delivered(run_directory)

    def resume(run_id: str) -> tuple[str | None, str | None]:
        tracker = get_tracker("clearml")
        found = tracker.open(RunStart("run", ".", first.run_id, run_id=run_id, after=first.delivered))
        tracker.seq = first.delivered + 1
        tracker.track(0.5, "loss", "train", step=2)
        tracker.close("finished")
        return found.id, found.note

    assert resume("id-2")[0] == first.run_id
    other, noted = resume("id-3")
    assert other != first.run_id
    assert str(noted).startswith("a run of its own there")


def test_names_that_the_service_would_merge_stay_separate_and_are_reported(
    cloud: ClearmlCloud, recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"x": 1}, "_a")
    recorder.set_params({"y": 2}, " a")
    recorder.track_point(MetricPoint({"train_loss": 7.0}))
    recorder.track_point(MetricPoint({"train_loss": 0.5}, "train", 5))
    recorder.close("finished")
    ledger = delivered(run_directory)
    (task,) = cloud.tasks.values()
    params = [set(section) for section in task["hyperparams"].values()]
    assert {"x"} in params
    assert {"y"} in params
    single = {event["variant"]: event["value"] for event in cloud.events(task["id"]) if event["iter"] < 0}
    assert single == {"train_loss_2": 7.0, "train_loss": 0.5}
    assert {" a is called _a_2", "train_loss is called train_loss_2"} <= set(ledger.changes)


def test_standalone_it_needs_no_journal(cloud: ClearmlCloud) -> None:
    tracker = get_tracker("clearml", project="alone")
    tracker.track(0.5, "f1(macro)", "eval", step=1)
    tracker.set_params({"a": {"b": None}})
    tracker.set_params({"c": 1})
    tracker.open(RunStart("named", "."))
    tracker.track(float("nan"), "f1(macro)", "eval", step=2)
    tracker.train_ended("finished")
    tracker.track(0.25, "f1(macro)", "eval", step=3)
    tracker.set_params({"d": 1})
    tracker.close("finished")
    (task,) = cloud.tasks.values()
    found = stored(task, cloud.events(task["id"]))
    assert found["points"] == [["eval/f1(macro)", 1, 0.5], ["eval/f1(macro)", 3, 0.25]]
    assert found["params"]["*"] == {"params.a.b": "None", "params.c": "1", "params.d": "1"}
    assert (task["name"], task["status"]) == ("named", "completed")


@pytest.mark.parametrize("answer", [500, 503, "black_hole"])
def test_an_outage_ends_in_time_and_delayed_events_arrive_later(
    answer: Any, cloud: ClearmlCloud, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clearml_server._session_class(), "_session_timeout", (0.3, 0.3))
    monkeypatch.setattr(clearml_server._session_class(), "_write_session_timeout", (0.3, 0.3))
    tracker = ClearmlTracker("clearml", {})
    track_point = tracker.track_point

    def struck(point: MetricPoint) -> None:
        track_point(point)
        cloud.answer = answer

    tracker.track_point = struck  # type: ignore[method-assign]
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("finished")
    with pytest.raises(DeliveryFailed):
        Delivery(run_directory, tracker, load_ledger(run_directory, "clearml") or Ledger("clearml")).run(
            lambda: True
        )
    cloud.answer = "ok"
    delivered_in_the_end(run_directory)
    (task,) = cloud.tasks.values()
    assert stored(task, cloud.events(task["id"]))["points"] == [["train/loss", 1, 1.0]]


# -- offline ----------------------------------------------------------------------------------


def imported(folder: Path) -> str:
    """The task that ClearML's SDK creates by importing the session in a folder."""
    from clearml import Task

    return str(Task.import_offline_session(str(folder)))


def test_clearmls_own_import_has_everything_of_an_offline_session(
    cloud: ClearmlCloud, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    tracked(recorder, run_directory)
    recorder.close("finished")
    ledger = delivered(run_directory, **OFFLINE)
    place, _, _ = session(tmp_path / "sessions")
    assert f"`clearml-task --import-offline-session {place}`" in str(ledger.note)
    assert not cloud.requests
    task = cloud.tasks[lives("clearml").read(f"{__name__}:imported", place)]
    events = cloud.events(task["id"])
    found = stored(task, events)
    assert sorted(found["points"], key=repr) == sorted(POINTS, key=repr)
    assert found["params"]["*"]["params.files"] == '["x", 1]'
    assert (task["name"], cloud.projects[task["project"]], found["status"]) == ("run", "fmstune", "finished")
    for name, data in cloud.files.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(data)
    assert sorted(media(events, tmp_path / "files")) == MEDIA
    (artifact,) = task["execution"]["artifacts"]
    assert cloud.files[artifact["uri"].removeprefix(f"{cloud.url}/")] == bytes(range(256))


def test_clearmls_own_import_finds_the_files_of_a_session_that_was_moved_and_continued(
    cloud: ClearmlCloud, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    for number, dir in enumerate(("sessions", "moved", "elsewhere")):
        (given := tmp_path / f"{number}.bin").write_bytes(bytes([number]))
        with active(recorder):
            fmstune.track_artifact(given)
        recorder.close("interrupted")
        delivered(run_directory, offline=True, dir=dir)
        recorder.resumed(1)
        (tmp_path / dir).rename(tmp_path / ("moved" if number == 0 else "elsewhere"))
    place, _, _ = session(tmp_path / "elsewhere")
    task = cloud.tasks[lives("clearml").read(f"{__name__}:imported", place)]
    found = [
        cloud.files[each["uri"].removeprefix(f"{cloud.url}/")] for each in task["execution"]["artifacts"]
    ]
    assert found == [b"\0", b"\1", b"\2"]


def test_a_killed_process_leaves_no_truncated_line_in_a_session(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    first = delivered(run_directory, **OFFLINE)
    path = next((tmp_path / "sessions").iterdir()) / "metrics.jsonl"
    with path.open("a") as file:
        file.write('[{"type": "training_stats')
    recorder.resumed(1)
    recorder.track_point(MetricPoint({"loss": 2.0}, "train", 2))
    recorder.close("finished")
    assert delivered(run_directory, **OFFLINE).run_id == first.run_id
    _, task, events = session(tmp_path / "sessions")
    assert [event["value"] for event in events] == [1.0, 2.0]
    assert task["status"] == "completed"


def test_a_truncated_session_is_delivered_again(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    for step in (1, 2):
        recorder.track_point(MetricPoint({"loss": float(step)}, "train", step))
    recorder.close("finished")
    delivered(run_directory, **OFFLINE)
    os.truncate(next((tmp_path / "sessions").iterdir()) / "metrics.jsonl", 200)
    recorder.resumed(2)
    recorder.close("finished")
    delivered_in_the_end(run_directory, **OFFLINE)
    _, task, events = session(tmp_path / "sessions")
    assert sorted(stored(task, events)["points"]) == [["train/loss", 1, 1.0], ["train/loss", 2, 2.0]]
