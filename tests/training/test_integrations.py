"""Integrations that transformers adds by itself do not report from the training process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fmstune.run.tracking import TrackerCheckFailed
from tests.support.tracked import tune

ONE = ["training.max_steps=1", "training.eval_strategy=no", "training.save_strategy=no"]


@pytest.fixture
def posts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What the controller of a Kubeflow job receives from a run within the test."""
    received: list[bytes] = []

    class Controller(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Controller)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("of the service account")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(Path("token").resolve()))
    yield received
    server.shutdown()
    thread.join()
    server.server_close()


def test_kubeflow_gets_nothing_from_the_training_process_and_the_run_names_the_tracker(
    posts: list[bytes],
) -> None:
    _, shown = tune("run", *ONE)
    assert posts == []
    assert "to report to kubeflow, but this run does not: add --tracker hf:kubeflow" in " ".join(
        shown.split()
    )


def test_kubeflow_is_a_tracker_if_asked(posts: list[bytes]) -> None:
    _, shown = tune("run", *ONE, trackers=("hf:kubeflow",))
    assert posts
    assert all(b"trainerStatus" in post for post in posts)
    assert "to report to kubeflow" not in shown


def test_kubeflow_is_refused_outside_of_its_jobs_where_its_callback_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = "its callback does nothing without KUBEFLOW_TRAINER_SERVER_URL. Set it"
    with pytest.raises(TrackerCheckFailed, match=said):
        tune("run", *ONE, trackers=("hf:kubeflow",))
