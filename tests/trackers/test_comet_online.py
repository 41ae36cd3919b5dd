"""Comet's tracker online: the SDK's own requests against a stand-in for Comet's server."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmstune
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.comet.service import Http
from fmstune.trackers.comet_tracker import CometTracker
from fmstune.trackers.records import MetricPoint, RunStart, Table, TrackerError
from tests.support.aim_servers import free_port
from tests.support.comet_cloud import CometCloud, CometRun
from tests.support.shipping import delivered_by
from tests.support.waiting import wait_for

START = RunStart("name", ".", run_id="id-1", new_run_id="a" * 24, sessions=("one",))


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CometCloud]:
    monkeypatch.chdir(tmp_path)
    with CometCloud() as cloud:
        monkeypatch.setenv("COMET_URL_OVERRIDE", cloud.url)
        monkeypatch.setenv("COMET_API_KEY", cloud.key)
        yield cloud


def opened(start: RunStart = START, **options: Any) -> tuple[CometTracker, str]:
    tracker = CometTracker("comet", options)
    found = tracker.open(start)
    assert found.id is not None
    return tracker, found.id


def give(tracker: CometTracker, *seqs: int) -> None:
    """Track events with these numbers: a loss, and for every fourth one a table too."""
    for seq in seqs:
        tracker.seq = seq
        if seq % 4:
            tracker.track_point(MetricPoint({"loss": seq / 8}, "train", seq, None, 1e9 + seq, seq, {}))
        else:
            tracker.track_table(Table("samples", ({"a": "x"},), "eval", seq, None, 1e9, seq))


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_a_run_is_stored_in_the_form_that_comet_users_expect_and_nothing_else_is(
    status: Any, cloud: CometCloud, recorder: Recorder, run_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import comet_ml

    recorder.set_params({"training": {"learning_rate": 1e-4}, "names": ["a"]}, "config")
    recorder.track_point(MetricPoint({"loss": 2.0, "grad": float("inf")}, "train", 7, 0.5))
    recorder.track_point(MetricPoint({"loss": 3.0}, "eval", 7, 0.5))
    recorder.close(status, "ValueError: no" if status == "failed" else None)
    ledger = delivered_by(CometTracker("comet", {"project": "p", "workspace": "nlp"}), run_directory)
    key = ledger.run_id
    assert ledger.url == f"{cloud.root}/nlp/p/{key}"

    read = comet_ml.APIExperiment(api_key=cloud.key, previous_experiment=key)
    points = [(each["metricName"], each["metricValue"], each["step"]) for each in read.get_metrics()]
    assert sorted(points) == [
        ("eval/loss", "3.0", 7), ("train/epoch", "0.5", 7), ("train/grad", "Infinity", 7),
        ("train/loss", "2.0", 7),
    ]  # fmt: skip
    params = {each["name"]: each["valueCurrent"] for each in read.get_parameters_summary()}
    assert params == {"config|training|learning_rate": "0.0001", "config|names": '["a"]'}
    others = {each["name"]: each["valueCurrent"] for each in read.get_others_summary()}
    assert (others["Name"], others["status"], others.get("error")) == (
        "run", status, "ValueError: no" if status == "failed" else None,
    )  # fmt: skip
    run = cloud.run
    assert (run.alive, run.crashed, run.assets) == (False, status == "failed", [])
    kinds = {path.rpartition("/")[2] for path in cloud.requests}
    assert kinds == {
        "run", "update", "metric", "parameter", "log-other", "update-status", "get-all", "ver", "parameters",
        "metadata",
    } - ({"metadata"} if "metadata" not in kinds else set())  # fmt: skip
    assert capfd.readouterr() == ("", "")


def test_the_stand_in_accepts_what_the_sdks_own_experiment_sends(cloud: CometCloud) -> None:
    """This ensures that the comparison is with Comet's own format."""
    import comet_ml

    own = (
        "log_code", "log_graph", "auto_param_logging", "auto_metric_logging", "parse_args",
        "auto_output_logging", "log_env_details", "log_git_metadata", "log_git_patch",
    )  # fmt: skip
    quiet = dict.fromkeys(own, False)
    theirs = comet_ml.Experiment(api_key=cloud.key, project_name="p", display_summary_level=0, **quiet)
    theirs.log_metrics({"train/loss": 2.0, "train/bad": float("nan")}, step=7, epoch=0.5)
    theirs.log_parameters({"lr": 1e-4}, prefix="config")
    theirs.log_table("samples.csv", [["x", 1]], headers=["a", "b"])
    theirs.log_text("hello", step=7, metadata={"name": "answer"})
    theirs.end()
    (run,) = cloud.experiments.values()
    (loss,) = [point for point in run.points if point["metricName"] == "train/loss"]
    assert run.values("train/bad") == ["NaN"]

    tracker, key = opened(project="p")
    tracker.seq = 1
    point = MetricPoint({"loss": 2.0, "bad": float("nan")}, "train", 7, 0.5, 1e9, 1, {})
    tracker.track_point(point)
    tracker.set_params({"lr": "0.0001"}, "config")
    tracker.close("finished")
    ours = cloud.experiments[key]
    assert ours.values("train/bad") == ["NaN"]
    assert {**ours.points[0], "timestamp": 0} == {**loss, "timestamp": 0}
    assert isinstance(loss["timestamp"], int)
    assert run.params["config_lr"] == 0.0001
    assert {each["kind"] for each in run.assets} == {"asset", "text-sample"}


def test_a_run_sends_what_comet_upload_sends_for_its_archive(
    cloud: CometCloud, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    from comet_ml.offline import upload_single_offline_experiment

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.bin").write_bytes(b"weights")
    pixels = np.array([[[255, 0, 0]]], np.uint8)
    recorder.set_params({"lr": 1e-4}, "config")
    with active(recorder):
        fmstune.track(1.0, "loss", "train", step=1)
        fmstune.track_text("an ünïcode text", "answer", "eval", step=1)
        fmstune.track_image(pixels, "sample", "eval", step=1, caption="a cap")
        fmstune.track_histogram([0.0, 1.0, 1.0], "weights", "train", step=1, bins=2)
        fmstune.track_table([{"a": "x", "b": 1}], "samples", "eval", step=1)
        fmstune.track_artifact(tmp_path / "model", "tuned", type="model")
        fmstune.track_artifact(tmp_path / "model" / "model.bin", "things")
    recorder.close("finished")
    sent = delivered_by(CometTracker("comet"), run_directory).run_id
    kept = delivered_by(CometTracker("other", {"mode": "offline"}), run_directory).run_id
    archive = tmp_path / ".cometml-runs" / f"{kept}-1.zip"
    assert upload_single_offline_experiment(str(archive), cloud.key, force_upload=False)
    ours, theirs = cloud.experiments[sent or ""], cloud.experiments[kept or ""]

    def assets(run: CometRun) -> list[str]:
        own = ("experimentId", "runId")
        return sorted(repr({k: v for k, v in sorted(each.items()) if k not in own}) for each in run.assets)

    assert (ours.points, ours.params) == (theirs.points, theirs.params)
    assert {key: value for key, value in ours.others.items() if key != "fmstune"} == theirs.others
    assert assets(ours) == assets(theirs)
    named = {each["fileName"]: each for each in ours.assets}
    assert sorted(named) == [
        "eval/sample", "eval/samples.step1.csv", "model.bin", "text", "things/model.bin",
        "train/weights.json",
    ]  # fmt: skip
    assert (named["model.bin"]["data"], named["model.bin"]["groupingName"]) == (b"weights", "tuned")


def test_the_process_after_a_killed_one_sends_only_what_is_missing(
    cloud: CometCloud,
) -> None:
    first, key = opened()
    give(first, 1, 2, 3, 4)
    first.flush()  # and killed before this was recorded
    again, same = opened(dataclasses.replace(START, tracker_run_id=key, redelivery=True))
    give(again, 1, 2, 3, 4, 5)
    again.flush()
    again.close("finished")
    assert same == key
    run = cloud.run
    assert run.values("train/loss") == [1 / 8, 2 / 8, 3 / 8, 5 / 8]
    assert len(run.assets) == 1


def test_a_run_without_its_ledger_is_recognized_by_its_content_on_the_server(cloud: CometCloud) -> None:
    for cloud.old in (False, True):
        tracker, _ = opened()
        give(tracker, 1, 2, 4)
        tracker.close("finished")
    run = cloud.run
    assert run.values("train/loss") == [1 / 8, 2 / 8]
    assert len(run.assets) == 1


def test_a_killed_process_and_a_lost_ledger_still_leave_each_point_once(cloud: CometCloud) -> None:
    first, key = opened(dataclasses.replace(START, tags=("a",)))
    give(first, 1, 2)
    first.flush()  # and killed
    then = dataclasses.replace(START, tracker_run_id=key, tags=("a", "b"))
    opened(then)[0].close("interrupted")  # everything had been delivered
    last, _ = opened(then)
    give(last, 1, 2, 3)
    last.close("finished")
    assert cloud.run.values("train/loss") == [1 / 8, 2 / 8, 3 / 8]
    assert cloud.run.tags == ["a", "b"]


def test_the_second_of_two_diverging_resumes_gets_its_own_experiment(cloud: CometCloud) -> None:
    first, key = opened()
    give(first, 1, 2)
    first.close("interrupted")
    then = dataclasses.replace(START, tracker_run_id=key, run_id="id-2", after=2)
    child, same = opened(then)
    give(child, 3)
    child.close("finished")
    assert same == key
    other, own = opened(dataclasses.replace(then, run_id="id-3"))
    give(other, 3)
    other.close("finished")
    assert own != key
    assert cloud.experiments[key].values("train/loss") == [1 / 8, 2 / 8, 3 / 8]
    assert cloud.experiments[own].values("train/loss") == [3 / 8]


def test_an_experiment_from_the_environment_with_other_points_is_an_error(
    cloud: CometCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_EXPERIMENT_KEY", "0" * 32)
    first, key = opened()
    give(first, 1)
    first.close("finished")
    assert key == "0" * 32
    with pytest.raises(TrackerError, match="holds other points; unset COMET_EXPERIMENT_KEY"):
        opened(dataclasses.replace(START, run_id="another", after=1))


def test_a_refused_event_costs_only_itself_and_is_reported(
    cloud: CometCloud, recorder: Recorder, run_directory: Path
) -> None:
    with active(recorder):
        fmstune.track(1.0, "loss", "train", step=1)
        fmstune.track_text("one too many", "answer", "eval", step=1)
        fmstune.track(0.5, "loss", "train", step=2)
    recorder.close("finished")
    cloud.refuses = "asset/upload"
    for _ in range(6):
        ledger = load_ledger(run_directory, "comet") or Ledger("comet")
        try:
            Delivery(run_directory, CometTracker("comet"), ledger).run(lambda: True)
        except DeliveryFailed:
            continue
    (line,) = report(run_directory, ["comet"])
    assert (line.delivered, line.total) == (3, 4)
    assert "you have reached the limit of text samples" in str(line.error)
    assert cloud.run.values("train/loss") == [1.0, 0.5]


def test_a_rate_limited_request_waits_as_long_as_the_server_says(
    cloud: CometCloud,
) -> None:
    tracker, _ = opened()
    cloud.throttled = 1
    give(tracker, 1, 2)
    tracker.close("finished")
    assert cloud.run.values("train/loss") == [1 / 8, 2 / 8]


def test_an_experiment_is_kept_alive_while_its_run_is_silent_and_not_after_its_end(
    cloud: CometCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.trackers.comet.service._FIRST_HEARTBEAT", 0.05)
    before = set(threading.enumerate())
    tracker, _ = opened()
    wait_for(lambda: sum("status-report" in path for path in cloud.requests) > 1)
    assert cloud.run.alive
    tracker.close("finished")
    assert not cloud.run.alive
    begun = set(threading.enumerate()) - before
    assert not [thread for thread in begun if "Heartbeat" in type(thread).__name__]


@pytest.mark.parametrize("trouble", [429, 503, "refused"])
def test_an_outage_is_reported_as_such_and_nothing_is_lost_or_duplicated(
    trouble: Any, cloud: CometCloud, recorder: Recorder, run_directory: Path
) -> None:
    for step in range(1, 4):
        recorder.track_point(MetricPoint({"loss": step / 8}, "train", step))
    tracker = CometTracker("comet")
    flush, calls = tracker.flush, []

    def fail_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            cloud.hang_up() if trouble == "refused" else setattr(cloud, "answer", trouble)
        flush()

    tracker.flush = fail_once  # type: ignore[method-assign]
    with pytest.raises(DeliveryFailed) as failed:
        Delivery(run_directory, tracker, Ledger("comet")).run(lambda: True)
    assert isinstance(failed.value.__cause__, OSError)
    assert cloud.key not in str(failed.value)
    cloud.listen() if trouble == "refused" else setattr(cloud, "answer", "ok")
    recorder.close("finished")
    ledger = load_ledger(run_directory, "comet")
    assert ledger is not None
    Delivery(run_directory, CometTracker("comet"), ledger).run(lambda: True)
    assert cloud.run.values("train/loss") == [1 / 8, 2 / 8, 3 / 8]


def test_the_check_distinguishes_causes_ends_in_time_and_creates_nothing(
    cloud: CometCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(timeout: float = 10, **options: Any) -> tuple[str, str]:
        found = CometTracker("comet", options).check(timeout)
        assert cloud.key not in f"{found}"
        return found.state, f"{found.detail}; {found.remedy}"

    assert checked(project="p") == ("ok", "ada, writes to ada/p, which will be created; ")
    with monkeypatch.context() as world:
        world.setattr(cloud, "experiments", {"k": CometRun("k", "nlp", "p")})
        assert checked(project="p", workspace="nlp") == ("ok", "ada, writes to nlp/p; ")
    state, said = checked(workspace="other")
    assert (state, "ada is not in the workspace other" in said, "ada, nlp" in said) == (
        "no_permission", True, True,
    )  # fmt: skip
    for answer, expected in ((500, "unreachable"), (429, "unreachable"), (401, "rejected_credentials")):
        cloud.answer = answer
        assert checked()[0] == expected
    cloud.answer = "black_hole"
    began = time.monotonic()
    assert checked(timeout=0.8)[0] == "unreachable"
    assert time.monotonic() - began < 5
    cloud.answer = "ok"
    with monkeypatch.context() as world:
        world.setenv("COMET_API_KEY", "a-wrong-one")
        assert checked()[0] == "rejected_credentials"
        world.delenv("COMET_API_KEY")
        assert checked()[0] == "no_credentials"
        assert checked(mode="offline")[0] == "ok"
        assert checked(mode="offline", dir="/proc/here")[0] == "no_permission"
        assert checked(mode="disabled")[0] == "ok"
        (tmp_path / ".comet.config").write_text(f"[comet]\napi_key = {cloud.key}\nproject_name = q\n")
        assert checked() == ("ok", "ada, writes to ada/q, which will be created; ")
    with monkeypatch.context() as world:
        world.setenv("COMET_URL_OVERRIDE", f"http://127.0.0.1:{free_port()}/clientlib/")
        assert checked()[0] == "unreachable"
        world.setenv("COMET_EXPERIMENT_KEY", "short")
        assert checked() == (
            "bad_option",
            "COMET_EXPERIMENT_KEY is 'short', which is not 32 to 50 letters and digits; correct or unset it",
        )
    assert checked(mode="both")[0] == "bad_option"
    assert not cloud.experiments
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == [".comet.config"]


@pytest.mark.parametrize("at", ["workspaces", "projects"])
@pytest.mark.parametrize(("answer", "state"), [(429, "unreachable"), (500, "unreachable"), (5, "bad_option")])
def test_each_response_in_the_check_is_validated(
    at: str, answer: int, state: str, cloud: CometCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Http.ask

    def answered(self: Http, path: str, **query: Any) -> Any:
        found = ask(self, path, **query)
        if path == at and answer == 5:
            found._content = b'{"workspaceNames": 5, "projects": 5}'
        elif path == at:
            found.status_code = answer
        return found

    monkeypatch.setattr(Http, "ask", answered)
    assert CometTracker("comet", {"workspace": "nlp"}).check(10).state == state


@pytest.mark.parametrize(
    ("variable", "value", "state", "said"),
    [
        ("COMET_MODE", "DISABLED", "ok", "disabled by COMET_MODE"),
        ("COMET_MODE", "offline", "ok", "offline, in"),
        ("COMET_MODE", "get_or_create", "ok", "ada, writes to"),
        ("COMET_MODE", "banana", "bad_option", "COMET_MODE is 'banana'"),
        (
            "COMET_START_ONLINE",
            "banana",
            "bad_option",
            "COMET_START_ONLINE is 'banana', which cannot be read",
        ),
    ],
)
def test_comets_environment_variables_are_respected_or_refused(
    variable: str, value: str, state: str, said: str, cloud: CometCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    found = CometTracker("comet").check(10)
    assert (found.state, said in found.detail) == (state, True), found
