"""SwanLab's tracker with its real SDK against a stand-in for the cloud, its only service."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fmstune
from fmstune.cli.trackers import _print_check
from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.records import MetricPoint, Table
from fmstune.trackers.swanlab_tracker import SwanLabTracker
from tests.support.journals import journal_path
from tests.support.shipping import delivered_by
from tests.support.swanlab_cloud import SwanLabCloud


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SwanLabCloud]:
    monkeypatch.chdir(tmp_path)
    with SwanLabCloud() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def delivered(directory: Path, **options: Any) -> Ledger:
    """The ledger after a delivery in this process."""
    return delivered_by(SwanLabTracker("swanlab", options), directory)


def scalars(cloud: SwanLabCloud) -> list[tuple[str, int, Any]]:
    """The values of the only run, without the axes."""
    (run,) = cloud.runs.values()
    return [each for each in run.scalars if each[0] not in ("train/global_step", "train/epoch")]


def test_a_run_is_stored_in_the_form_that_swanlab_users_expect(
    cloud: SwanLabCloud, recorder: Recorder, run_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(Path().iterdir())
    recorder.set_params({"team": "nlp", "worst": float("inf")}, "params")
    recorder.track_point(MetricPoint({"loss": 2.0, "bad": float("nan")}, "train", 5, 0.5, 1e9))
    recorder.track_table(Table("samples", ({"prompt": "Hi", "tokens": None},), "eval", 5))
    with active(recorder):
        fmstune.track_text("said", "answer", "eval", step=5)
    recorder.close("failed", "ValueError: no")
    ledger = delivered(run_directory, tags=("a",), project="p")
    ((run_id, run),) = cloud.runs.items()
    assert (ledger.state, ledger.run_id) == ("complete", run_id)
    assert ledger.url is not None
    assert ledger.url.endswith(f"/@ada/p/runs/{run_id}")
    assert (run.project, run.state, run.logs) == ("ada/p", "CRASHED", ["ValueError: no"])
    assert run.said["labels"] == [{"name": "a"}]
    assert set(run.scalars) == {
        ("train/loss", 5, 2.0), ("train/bad", 5, "nan"),
        ("train/global_step", 5, 5.0), ("train/epoch", 5, 0.5),
    }  # fmt: skip
    assert run.config["params"] == {"team": "nlp", "worst": "Infinity"}
    assert {each["key"]: each["index"] for each in run.media} == {"eval/samples": 5, "eval/answer": 5}
    (text,) = [data for path, data in cloud.stored.items() if path.startswith("media/text/")]
    assert text == b"said"
    assert run.series["train/loss"] == {"key": "train/loss", "type": "FLOAT", "sectionName": "train"}
    # Nothing about the machine, the process or the code; no leftover thread, no file, no output.
    assert set(run.profile) == {"config"}
    assert not [thread for thread in threading.enumerate() if "SwanLab" in thread.name]
    assert set(Path().iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_continues_and_reports_what_the_cloud_keeps(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    for step in (1, 2, 3):
        recorder.track(step / 8, "loss", "train", step=step)
    recorder.close("interrupted")
    first = delivered(run_directory)
    recorder.resumed(1)
    for step in (2, 3, 4):
        recorder.track(step / 4, "loss", "train", step=step)
    recorder.close("finished")
    ledger = delivered(run_directory)
    (run,) = cloud.runs.values()
    assert (ledger.run_id, ledger.state, run.state) == (first.run_id, "complete", "FINISHED")
    assert scalars(cloud) == [("train/loss", 1, 0.125), ("train/loss", 2, 0.25), ("train/loss", 3, 0.375),
                              ("train/loss", 4, 1.0)]  # fmt: skip
    assert "of steps that were logged again, SwanLab keeps the first values: of train/loss" in ledger.changes


def test_redelivered_values_are_stored_once_even_without_the_ledger(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    for step in (1, 2):
        recorder.track(0.5, "loss", "train", step=step)
        recorder.track(0.25, "loss", "train", step=step)
    recorder.close("finished")
    there = delivered(run_directory)
    Ledger("swanlab", run_id=there.run_id).save(run_directory)
    again = delivered(run_directory)
    assert again.state == "complete"
    assert again.changes == there.changes
    assert scalars(cloud) == [
        (key, step, value)
        for step in (1, 2)
        for key, value in (("train/loss", 0.5), ("train/loss (2)", 0.25))
    ]


@pytest.mark.parametrize("path", ["series", "house/metrics", "profile", "presigned", "state"])
def test_a_failure_in_the_middle_of_a_batch_is_delivered_once_later(
    path: str, cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    recorder.set_params({"a": 1}, "params")
    for step in (1, 2, 3):
        recorder.track(step / 8, "loss", "train", step=step)
        with active(recorder):
            fmstune.track_text("said", "answer", "eval", step=step)
    recorder.close("finished")
    cloud.refuses[path] = 503
    with pytest.raises(DeliveryFailed):
        delivered(run_directory)
    cloud.refuses.clear()
    assert delivered(run_directory).state == "complete"
    (run,) = cloud.runs.values()
    assert scalars(cloud) == [("train/loss", step, step / 8) for step in (1, 2, 3)]
    assert [each["index"] for each in run.media] == [1, 2, 3]
    assert (run.config["params"], run.state) == ({"a": 1}, "FINISHED")


def test_an_expired_session_is_renewed(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmstune.trackers.swanlab.cloud import Client

    login = Client.login

    def logged_in(client: Client) -> None:
        login(client)
        if sum("login" in each for each in cloud.requests) == 1:
            client._session.cookies.update({"sid": "old"})

    monkeypatch.setattr(Client, "login", logged_in)
    recorder.track(1.0, "loss", "train", step=1)
    recorder.close("finished")
    assert delivered(run_directory).state == "complete"
    assert scalars(cloud) == [("train/loss", 1, 1.0)]


def test_two_runs_resumed_from_one_checkpoint_have_separate_experiments(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder, tmp_path: Path
) -> None:
    recorder.track(1.0, "loss", "train", step=1)
    recorder.close("interrupted")
    there = delivered(run_directory)
    ids = []
    for name in ("a", "b"):
        directory = tmp_path / name
        (directory / "tracking").mkdir(parents=True)
        journal = JournalWriter(journal_path(directory), Header(f"id-{name}", name, time.time(), ".", 2))
        journal.append("metrics", {"stage": "train", "step": 2, "values": {"loss": 0.5}})
        journal.append("status", {"status": "finished"})
        journal.close()
        Ledger("swanlab", run_id=there.run_id, delivered=2).save(directory)
        ids.append(delivered(directory).run_id)
    assert ids[0] == there.run_id != ids[1]
    assert cloud.runs[ids[1]].scalars == [("train/loss", 2, 0.5), ("train/global_step", 2, 2.0)]


def test_its_files_are_saved(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    with active(recorder):
        fmstune.track_artifact(tmp_path / "a.bin", "model")
    recorder.close("finished")
    assert delivered(run_directory).state == "complete"
    (run,) = cloud.runs.values()
    assert run.files == {"model/a.bin": "UPLOADED"}
    assert cloud.stored["model/a.bin"] == bytes(range(256))


@pytest.mark.parametrize(
    ("trouble", "state", "words"),
    [
        ({}, "ok", "ada, writes to ada/fmstune, which will be created"),
        ({"SWANLAB_API_KEY": ""}, "no_credentials", "there is no API key for"),
        ({"SWANLAB_API_KEY": "wrong"}, "rejected_credentials", "rejects the API key (401)"),
        ({"SWANLAB_WORKSPACE": "a b"}, "bad_option", "workspace"),
        ({"SWANLAB_MODE": "local"}, "bad_option", "use `offline`"),
        ({"SWANLAB_MODE": "qqq"}, "bad_option", "mode"),
        ({"SWANLAB_PROJECT": "closed"}, "no_permission", "no access to ada/closed"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else None,
)
def test_a_check_distinguishes_causes_and_creates_nothing(
    trouble: dict[str, str], state: str, words: str, cloud: SwanLabCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.closed_projects = {"ada/closed"}
    for name, value in trouble.items():
        monkeypatch.setenv(name, value)
    found = SwanLabTracker("swanlab").check(5)
    assert (found.state, words in found.detail + found.remedy) == (state, True), found
    assert all(each.startswith(("POST /api/login", "GET")) for each in cloud.requests)
    assert not cloud.runs
    assert not list(Path().iterdir())
    assert "wrong" not in str(found)


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        (500, "unreachable", "answers 500"), (429, "unreachable", "too many requests"),
        (404, "bad_option", "not as swanlab does"), ("black_hole", "unreachable", "no answer"),
        ("refused", "unreachable", "refused"),
    ],
)  # fmt: skip
def test_a_check_of_a_failing_server_ends_in_time(
    answer: Any, state: str, words: str, cloud: SwanLabCloud
) -> None:
    if answer == "refused":
        cloud.hang_up()
    else:
        cloud.answer = answer
    began = time.monotonic()
    found = SwanLabTracker("swanlab").check(2)
    assert (found.state, words in found.detail.lower()) == (state, True), found
    assert time.monotonic() - began < 2
    assert cloud.key not in str(found)
    if answer == "refused":
        cloud.listen()


def test_a_check_of_a_server_that_sends_a_byte_at_a_time_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, cloud: SwanLabCloud
) -> None:
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as slow:
        monkeypatch.setenv("SWANLAB_API_HOST", f"http://127.0.0.1:{slow.getsockname()[1]}")

        def answer() -> None:
            caller, _ = slow.accept()
            with caller:
                caller.recv(10_000)
                caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not done.wait(0.05):
                    caller.sendall(b" ")

        thread = threading.Thread(target=answer)
        thread.start()
        found = SwanLabTracker("swanlab").check(1)
        done.set()
        thread.join()
    assert (found.state, "no complete answer in 0.9 s" in found.detail) == ("unreachable", True), found


def test_a_check_of_another_service_says_so(monkeypatch: pytest.MonkeyPatch, cloud: SwanLabCloud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("SWANLAB_API_HOST", f"http://127.0.0.1:{other.getsockname()[1]}")

        def answer() -> None:
            caller, _ = other.accept()
            caller.recv(10_000)
            caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            caller.close()

        thread = threading.Thread(target=answer)
        thread.start()
        found = SwanLabTracker("swanlab").check(5)
        thread.join()
    assert (found.state, found.remedy) == ("bad_option", "correct SWANLAB_API_HOST")


def test_a_delivery_to_an_unreachable_service_fails_as_an_outage(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    cloud.hang_up()
    recorder.track(1.0, "loss", "train", step=1)
    recorder.close("finished")
    with pytest.raises(DeliveryFailed):
        delivered(run_directory)
    cloud.listen()
    assert delivered(run_directory).state == "complete"


def test_the_check_of_a_wrong_key_shows_the_full_url_of_the_key(
    cloud: SwanLabCloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", "wrong-0123456789")
    _print_check("swanlab", SwanLabTracker("swanlab").check(5))
    said = capsys.readouterr().out
    assert said.startswith(f"swanlab  rejected credentials: {cloud.url} rejects the API key (401)")
