"""The check of an MLflow server before a run, and the URL at which its runs are shown."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import cause_text
from fmstune.trackers.network import CLOSED
from fmstune.trackers.registry import get_tracker
from tests.support.aim_servers import free_port
from tests.support.mlflow_servers import mlflow_server, shared_server, store_in
from tests.support.shipping import delivered_by


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shipper: no telemetry, and few retries."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that requires a user and a password."""
    port = free_port()
    with mlflow_server(tmp_path_factory.mktemp("guarded"), port, guarded=True):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server that is not MLflow's."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "of-a-test-1234"}
WRONG = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "no"}


@pytest.mark.parametrize(
    ("where", "options", "variables", "state", "said"),
    [
        ("shared", {}, {}, "ok", "MLflow server"),
        ("shared", {"experiment": "unmade"}, {}, "ok", "the experiment unmade will be created"),
        ("guarded", {}, ADMIN, "ok", "MLflow server"),
        ("guarded", {}, {}, "no_credentials", "wants credentials"),
        ("guarded", {}, WRONG, "rejected_credentials", "rejects the credentials"),
        ("refused", {}, {}, "unreachable", "connection refused"),
        ("silent", {}, {}, "unreachable", "timed out"),
        ("web", {}, {}, "unreachable", "answers 501"),
        ("sqlite:////proc/x/mlflow.db", {}, {}, "no_permission", "cannot be written to"),
        ("gopher://x", {}, {}, "bad_option", "tracking_uri"),
        ("databricks", {}, {}, "bad_option", "no default experiment"),
        ("databricks", {"experiment": "/Users/me/x"}, {}, "no_credentials", ""),
    ],
)
def test_the_check_distinguishes_causes_and_creates_nothing(
    where: str, options: Mapping[str, str], variables: Mapping[str, str], state: str, said: str,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    uri = where
    if where in ("guarded", "web", "silent"):
        uri = request.getfixturevalue(where)
    elif where in ("shared", "refused"):
        uri = shared_server()[0] if where == "shared" else f"http://127.0.0.1:{free_port()}"
    found = get_tracker("mlflow", tracking_uri=uri, **options).check(4)
    assert (found.state, said in found.detail) == (state, True), found
    assert bool(found.remedy) == (state != "ok")
    assert list(tmp_path.iterdir()) == []


def test_the_check_reports_a_deleted_experiment() -> None:
    client = MlflowClient(shared_server()[0])
    client.delete_experiment(client.create_experiment("gone"))
    found = get_tracker("mlflow", tracking_uri=shared_server()[0], experiment="gone").check(10)
    assert (found.state, found.detail) == ("bad_option", "the experiment gone is deleted")


def test_a_password_in_the_address_is_in_no_message_and_no_url(
    recorder: Recorder, run_directory: Path
) -> None:
    address = shared_server()[0].replace("//", "//me:hunter2secret@")
    recorder.close("finished")
    tracker = get_tracker("mlflow", tracking_uri=address)
    assert "hunter2secret" not in repr(tracker.check(10))
    Delivery(run_directory, tracker, Ledger("mlflow")).run(lambda: True)
    assert "hunter2secret" not in (run_directory / "tracking" / "mlflow.json").read_text()


def test_a_local_store_is_shown_by_mlflows_own_command(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    path = store_in(tmp_path / "store")
    recorder.close("finished")
    tracker = get_tracker("mlflow", tracking_uri=f"sqlite:///{path}")
    ledger = delivered_by(tracker, run_directory)
    assert ledger.url is None
    assert ledger.note == f"`mlflow ui --backend-store-uri sqlite:///{path}` shows it"


@pytest.mark.parametrize("reads", [True, False])
def test_a_server_that_dies_during_a_request_is_reported_as_such(reads: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def die() -> None:
            connection, _ = server.accept()
            with connection:  # unread data turns the close into a reset
                if reads:
                    connection.recv(65536)
                else:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        thread = threading.Thread(target=die)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        found = get_tracker("mlflow", tracking_uri=address).check(5)
        thread.join()
    assert (found.state, found.detail) == ("unreachable", f"{address}: {CLOSED}")


def test_the_error_of_a_delivery_contains_no_tuple() -> None:
    said = "('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))"
    reset = "('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))"
    for text in (said, reset):
        assert cause_text(ConnectionError(f"API request failed: {text}.")) == (
            f"ConnectionError: API request failed: {CLOSED}."
        )


@pytest.mark.parametrize("allowed", [True, False])
def test_a_store_in_a_folder_is_used_if_mlflow_still_writes_to_it(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", str(allowed).lower())
    store = tmp_path / "mlruns"
    store.mkdir()
    found = get_tracker("mlflow", tracking_uri=str(store)).check(5.0)
    if allowed:
        assert (found.state, found.detail) == ("ok", "a store on this machine")
        MlflowClient(str(store)).create_experiment("as MLflow does")
    else:
        assert (found.state, found.detail) == (
            "bad_option", f"{store} is a folder, and this version of MLflow writes to databases only"
        )  # fmt: skip
        assert found.remedy.endswith("as sqlite:///mlflow.db, or set MLFLOW_ALLOW_FILE_STORE=true")
        with pytest.raises(MlflowException, match="MLFLOW_ALLOW_FILE_STORE=true"):
            MlflowClient(str(store))
