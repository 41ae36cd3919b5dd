"""ClearML's check distinguishes causes, ends in time and creates nothing, against a stand-in for its
server."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fmstune.trackers.records import TrackerOptionError
from fmstune.trackers.registry import get_tracker
from tests.support.aim_servers import free_port
from tests.support.clearml_cloud import ClearmlCloud


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ClearmlCloud]:
    monkeypatch.chdir(tmp_path)
    with ClearmlCloud() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server that is not ClearML's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("where", "options", "variables", "state", "said"),
    [
        ("cloud", {}, {}, "ok", "ada of ClearML"),
        ("cloud", {}, {"CLEARML_API_SECRET_KEY": "no"}, "rejected_credentials", "rejects the credentials"),
        ("cloud", {}, {"CLEARML_API_SECRET_KEY": ""}, "no_credentials", "no credentials"),
        ("refused", {}, {}, "unreachable", "connection refused"),
        ("silent", {}, {}, "unreachable", "timed out"),
        ("web", {}, {}, "bad_option", "not as a ClearML API server"),
        ("ftp://h", {}, {}, "bad_option", "is not an address"),
        ("cloud", {"project": "x"}, {}, "bad_option", "too short"),
        ("cloud", {}, {"CLEARML_CONFIG_FILE": "broken.conf"}, "bad_option", "broken.conf cannot be read"),
        ("refused", {"offline": True, "dir": "new"}, {}, "ok", "will be created"),
        ("refused", {"dir": "new"}, {"CLEARML_OFFLINE_MODE": "1"}, "ok", "will be created"),
        ("refused", {"offline": False}, {"CLEARML_OFFLINE_MODE": "1"}, "unreachable", "refused"),
        ("refused", {"offline": True, "dir": "/proc/x"}, {}, "no_permission", "cannot be written to"),
        ("refused", {"offline": True, "dir": "broken.conf/x"}, {}, "bad_option", "is not a folder"),
    ],
)
def test_the_check_distinguishes_causes_and_creates_nothing(
    where: str, options: Mapping[str, Any], variables: Mapping[str, str], state: str, said: str,
    cloud: ClearmlCloud, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "broken.conf").write_text("api { credentials {")
    if where == "refused":
        where = f"http://127.0.0.1:{free_port()}"
    elif where in ("silent", "web"):
        where = request.getfixturevalue(where)
    if where != "cloud":
        monkeypatch.setenv("CLEARML_API_HOST", where)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = get_tracker("clearml", **options).check(3.0)
    assert (found.state, said in found.detail) == (state, True), found
    assert cloud.secret_key not in repr(found)
    assert not cloud.tasks
    assert not cloud.projects
    assert list(tmp_path.iterdir()) == [tmp_path / "broken.conf"]


def test_clearmls_configuration_file_sets_server_and_account(
    cloud: ClearmlCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in cloud.environment:
        monkeypatch.delenv(name)
    keys = {"access_key": cloud.access_key, "secret_key": cloud.secret_key}
    (tmp_path / "my.conf").write_text(json.dumps({"api": {"api_server": cloud.url, "credentials": keys}}))
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(tmp_path / "my.conf"))
    assert get_tracker("clearml").check(3.0).ok


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TrackerOptionError, match="has no option 'api_key'"):
        get_tracker("clearml", api_key="x")


@pytest.mark.parametrize(("code", "state"), [(401, "rejected_credentials"), (500, "unreachable")])
def test_a_session_that_is_refused_after_login_is_not_reported_as_an_account(
    code: int, state: str, cloud: ClearmlCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def login(of: ClearmlCloud, _: Any) -> dict[str, Any]:
        of.answer = code  # from now on
        return {"token": of.token()}

    monkeypatch.setattr(ClearmlCloud, "_auth_login", login)
    assert get_tracker("clearml").check(3.0).state == state
