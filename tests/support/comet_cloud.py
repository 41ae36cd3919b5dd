"""A stand-in for Comet's server on 127.0.0.1: enough of its HTTP API for the SDK's own clients.

    with CometCloud() as cloud:
        os.environ |= {"COMET_URL_OVERRIDE": cloud.url, "COMET_API_KEY": cloud.key}
        ...
        assert cloud.experiments[key].points[0]["metricName"] == "train/loss"

It is a mock, because Comet's server cannot be run here: it answers what the SDK reads, and tests let the
SDK's own `Experiment`, `comet upload` and `APIExperiment` talk to it. It keeps what arrived, duplicates
included, and misbehaves on request: set `answer` at any time.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, final
from urllib.parse import parse_qs, urlsplit

from tests.support.stand_in import StandInServer

Answer = Literal["ok", "black_hole"] | int
"""The answer to every request: the normal one, none at all, or this HTTP status."""

_BEAT = {"is_alive_beat_duration_millis": 60_000, "gpu_monitor_interval_millis": 60_000}


@dataclass
class CometRun:
    """What arrived for one experiment."""

    key: str
    workspace: str
    project: str
    offline: bool = False
    points: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    assets: list[dict[str, Any]] = field(default_factory=list)
    """As sent in the request, with the bytes as `data` and the `metadata`."""
    alive: bool = True
    crashed: bool = False
    error: str | None = None
    opened: int = 0

    def read(self) -> list[tuple[str, int | None, Any]]:
        """Name, step and value of each point."""
        return [(each["metricName"], each.get("step"), each["metricValue"]) for each in self.points]

    def values(self, name: str) -> list[Any]:
        """The values of a metric, in the order of arrival."""
        return [point["metricValue"] for point in self.points if point["metricName"] == name]


class Wrong(Exception):
    """A request that the server answers with this status and Comet's code for the reason."""

    def __init__(self, status: int, code: int, text: str) -> None:
        self.status, self.answer = status, {"sdk_error_code": code, "msg": text, "code": status}
        super().__init__(text)


@final
class CometCloud:
    """The server; a context manager that listens on a free port while it is open."""

    key = "fedcba9876543210abcdef123"
    user = "ada"
    workspaces = ("ada", "nlp")

    def __init__(self) -> None:
        self.answer: Answer = "ok"
        self.experiments: dict[str, CometRun] = {}
        self.requests: list[str] = []
        self.throttled = 0
        """How many of the next requests with points are answered with 429 and a time to wait."""
        self.old = False
        """Whether it is an old version, in which an experiment is not created or fetched in one request."""
        self.refuses: str | None = None
        """A substring of the paths of requests that are refused with 400."""
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._server = StandInServer(self, 0, _Handler)
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.root}/clientlib/"

    def __enter__(self) -> CometCloud:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for thread in threading.enumerate():  # of runs that a test left open, as a kill does
            if type(thread).__name__ == "HeartbeatThread":
                thread.close()  # type: ignore[attr-defined]
                thread.join()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection and stop listening, so that clients are refused."""
        self._server.stop()

    def listen(self) -> None:
        """Listen again, at the same address, after `hang_up`."""
        self._server = StandInServer(self, self._server.server_address[1], _Handler)
        self._server.start()

    @property
    def run(self) -> CometRun:
        """The only experiment."""
        (found,) = self.experiments.values()
        return found

    # -- the client library's API -------------------------------------------------------------

    def clientlib(self, path: str, query: dict[str, str], body: Any) -> Any:
        """The answer to a client-library request, whose `body` is JSON, or a file with its metadata."""
        if path in ("logger/add/run", "logger/get/run"):
            return self._open(path, body)
        if path in ("isAlive/ver", "health/ping"):
            return {"version": "4.50.0"}
        if path in ("asset/upload", "visualizations/upload"):
            data, metadata = body
            said = {**query, "kind": query.get("type", "asset"), "data": data, "metadata": metadata}
            if path == "visualizations/upload":
                said |= {"kind": "image", "assetId": query["imageId"], "fileName": query["figName"]}
            self.experiments[query["experimentId"]].assets.append(said)
            return {"assetId": said["assetId"]}
        if path == "notification/experiment":  # an e-mail, which is never sent
            return {}
        run = self.experiments[body["experimentKey"]]
        if path == "status-report/update":
            run.alive = body["is_alive"]
            return _BEAT
        if path == "batch/logger/experiment/metric":
            run.points += body["values"]
        elif path == "batch/logger/experiment/parameter":
            run.params |= {each["parameterName"]: each["parameterValue"] for each in body["values"]}
        elif path == "tags/add-tags-to-experiment":
            run.tags += body["addedTags"]
        elif path not in ("status-report/offline-metadata", "asset/3d-limits"):
            raise Wrong(404, 0, f"no {path} here")
        return {}

    def _open(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        key = body.get("previousExperiment") or body["experimentKey"]
        if path == "logger/get/run":
            if key not in self.experiments:
                raise Wrong(400, 90210, "no experiment of this key")
        else:
            workspace = body["teamName"] or self.user
            if workspace not in self.workspaces:
                raise Wrong(400, 90219, f"the workspace {workspace} does not exist")
            if key in self.experiments and (self.old or not body["getOrCreateEnabled"]):
                raise Wrong(400, 90999, "there is an experiment of this key")
            made = CometRun(key, workspace, body["projectName"] or "general", body["offline"])
            self.experiments.setdefault(key, made)
        run = self.experiments[key]
        run.opened, run.alive = run.opened + 1, True
        focus = f"{self.root}/{run.workspace}/{run.project}/"
        return {"runId": f"run-{key}", "project_id": "p-1", "focusUrl": focus, "lastOffset": len(run.points)}

    # -- the REST API -------------------------------------------------------------------------

    def rest(self, path: str, query: dict[str, str], body: Any) -> Any:
        """The answer to a REST request."""
        if path == "account-details":
            return {"userName": self.user, "defaultWorkspaceName": self.user}
        if path == "workspaces":
            return {"workspaceNames": list(self.workspaces)}
        if path == "projects":
            mine = [run for run in self.experiments.values() if run.workspace == query["workspaceName"]]
            return {"projects": [{"projectName": run.project} for run in mine]}
        run = self.experiments[(body or query)["experimentKey"]]
        if path == "write/experiment/log-other":
            run.others[body["key"]] = body["value"]
            return {}
        if path == "write/experiment/tags":
            run.tags += body["addedTags"]
            return {}
        if path == "write/experiment/update-status":
            run.alive, run.crashed, run.error = body["isAlive"], body["hasCrashed"], body["error"]
            return {}
        if path == "experiment/metadata":
            where = {"workspaceName": run.workspace, "projectName": run.project, "projectId": "p-1"}
            return {"experimentKey": run.key, "running": run.alive, "archived": False, **where}
        if path == "experiment/log-other":
            return {"values": [_summary(key, value) for key, value in run.others.items()]}
        if path == "experiment/parameters":
            return {"values": [_summary(key, value) for key, value in run.params.items()]}
        if path == "experiment/metrics/get-all":
            texts = [{**point, "metricValue": str(point["metricValue"])} for point in run.points]
            return {"metrics": texts}
        if path == "experiment/asset/list":
            return {"assets": [{k: v for k, v in each.items() if k != "data"} for each in run.assets]}
        if path == "experiment/tags":
            return {"tags": list(dict.fromkeys(run.tags))}
        raise Wrong(404, 0, f"no {path} here")


def _summary(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, "valueCurrent": str(value), "valueMax": str(value), "valueMin": str(value)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInServer[CometCloud]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.headers.get("Content-Type", "").startswith("multipart/"):
            self._answer(_file(body, self.headers["Content-Type"]))
        else:
            self._answer(json.loads(body or b"null"))

    def do_GET(self) -> None:
        self._answer(None)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""

    def _answer(self, body: Any) -> None:
        cloud, parts = self.server.cloud, urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        with cloud.lock:
            cloud.requests.append(parts.path)
        if cloud.answer == "black_hole":
            cloud.closing.wait()
        if cloud.throttled and parts.path.endswith("experiment/metric"):
            cloud.throttled -= 1
            self._send(429, {"msg": "too many"}, {"Retry-After-Custom": "0.01"})
            return
        if cloud.answer != "ok":
            self._send(503 if cloud.answer == "black_hole" else cloud.answer, {"msg": "the stand-in says so"})
            return
        try:
            with cloud.lock:
                self._send(200, self._true_answer(parts.path, query, body))
        except Wrong as wrong:
            self._send(wrong.status, wrong.answer)

    def _true_answer(self, path: str, query: dict[str, str], body: Any) -> Any:
        cloud = self.server.cloud
        key = self.headers.get("Authorization") or (body or {}).get("apiKey")
        rest = path.startswith("/api/rest/v2/")
        if key != cloud.key and path != "/clientlib/isAlive/ver":
            raise Wrong(401, 0, "no such key") if rest else Wrong(403, 90212, "API key is not registered")
        if cloud.refuses is not None and cloud.refuses in path:
            raise Wrong(400, 7000012, "you have reached the limit of text samples")
        if rest:
            return cloud.rest(path.removeprefix("/api/rest/v2/"), query, body)
        return cloud.clientlib(path.removeprefix("/clientlib/"), query, body)

    def _send(self, status: int, answer: Any, headers: Mapping[str, str] | None = None) -> None:
        payload = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client gave up waiting, as black-hole tests expect


def _file(body: bytes, kind: str) -> tuple[bytes, Any]:
    from requests_toolbelt.multipart.decoder import MultipartDecoder

    found = {}
    for part in MultipartDecoder(body, kind).parts:
        name = part.headers[b"Content-Disposition"].decode().partition('name="')[2].partition('"')[0]
        found[name] = part.content
    return found["file"], json.loads(found.get("metadata", b"{}"))
