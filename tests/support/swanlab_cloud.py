"""A stand-in for SwanLab's cloud on 127.0.0.1: enough of its HTTP API for the requests of its real SDK.

It is a mock, because there is only a cloud. It answers what the SDK's own code (0.10) expects of the service,
and stores every value that it receives, also a second one of a step, so that tests detect duplicates."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, final

from tests.support.stand_in import StandInServer

Answer = Literal["ok", "black_hole"] | int
"""The answer to every request: the normal one, none at all, or this HTTP status."""
Fault = Literal["refused", "unanswered"]
"""A request is not processed, or is processed and its answer is lost."""


@dataclass
class Run:
    """What arrived for one experiment."""

    project: str
    said: dict[str, Any]
    series: dict[str, dict[str, Any]] = field(default_factory=dict)
    scalars: list[tuple[str, int, Any]] = field(default_factory=list)
    media: list[dict[str, Any]] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """The state of each uploaded file, by path."""
    state: str = "RUNNING"
    opened: int = 1

    @property
    def config(self) -> dict[str, Any]:
        """The params, by namespace."""
        return {name: each["value"] for name, each in self.profile.get("config", {}).items()}


@final
class SwanLabCloud:
    """The server; a context manager that listens on a free port while it is open."""

    key = "swanlab-key-0123456789"
    username = "ada"

    def __init__(self) -> None:
        self.answer: Answer = "ok"
        self.refuses: dict[str, int] = {}
        """The HTTP status of requests whose path contains this part."""
        self.fault: tuple[int, Fault] | None = None
        """The fault of the request that follows this number of others."""
        self.projects: set[str] = set()
        self.closed_projects: set[str] = set()
        self.runs: dict[str, Run] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._server = StandInServer(self, 0, _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> SwanLabCloud:
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection and stop listening, so that clients are refused."""
        self._server.stop()

    def listen(self) -> None:
        """Listen again, at the same address, after `hang_up`."""
        self._server = StandInServer(self, self._server.server_address[1], _Handler)
        self._server.start()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that point here."""
        return {"SWANLAB_API_HOST": self.url, "SWANLAB_API_KEY": self.key}

    def next_fault(self) -> Fault | None:
        """The fault for the request that has just arrived."""
        with self.lock:
            if self.fault is None:
                return None
            others, kind = self.fault
            self.fault = (others - 1, kind) if others else None
            return None if others else kind

    def reply(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        """The status and the answer of a request."""
        match method, *parts:
            case "GET", "project", owner, project:
                return self._project(f"{owner}/{project}")
            case "POST", "projects", owner:
                self.projects.add(f"{owner}/{body['name']}")
                return 201, {}
            case "POST", "project", owner, project, "experiment":
                return self._experiment(f"{owner}/{project}", body)
            case "GET", "project", _, _, "runs", run:
                return (200, self._run(run)) if run in self.runs else (404, {})
            case "PUT", "project", _, _, "runs", run, "profile":
                self.runs[run].profile |= body
            case "PUT", "project", _, _, "runs", run, "state":
                self.runs[run].state = body["state"]
            case "POST", "projects", _, _, "series":
                for run_ in self.runs.values():
                    run_.series |= {each["key"]: each for each in body["series"]}
            case "POST", "house", "metrics":
                self._take(body)
            case "GET", "house", "metrics", "summaries", _, run:
                return 200, self._summary(self.runs[run])
            case "POST", "resources", "presigned", "put":
                return 200, {"urls": [f"{self.url}/storage/{path}" for path in body["paths"]]}
            case "POST", "experiment", _, "files", "prepare":
                return 200, {"urls": [f"{self.url}/storage/{each['path']}" for each in body["files"]]}
            case "POST", "experiment", run, "files", "complete":
                self.runs[run].files |= {each["path"]: each["state"] for each in body["files"]}
            case "POST", "house", "experiments", _, "heartbeat":
                pass
            case _:
                return 404, {}
        return 200, {}

    def _project(self, path: str) -> tuple[int, Any]:
        if path in self.closed_projects:
            return 403, {}
        if path not in self.projects:
            return 404, {}
        owner, name = path.split("/")
        return 200, {
            "cuid": "p1", "name": name, "version": 1, "path": f"/{path}", "group": {"username": owner},
            "_count": {"experiments": len(self.runs)},
        }  # fmt: skip

    def _experiment(self, project: str, body: Any) -> tuple[int, Any]:
        new = body["cuid"] not in self.runs
        if new:
            self.runs[body["cuid"]] = Run(project, body)
        else:
            self.runs[body["cuid"]].said |= body
            self.runs[body["cuid"]].opened += 1
            self.runs[body["cuid"]].state = "RUNNING"
        return (201 if new else 200), self._run(body["cuid"])

    def _run(self, run: str) -> dict[str, Any]:
        there = self.runs[run]
        said = {"cuid": run, "slug": run, "name": there.said["name"], "createdAt": "2026-01-02T03:04:05.000Z"}
        return said | {"profile": there.profile}

    def _take(self, body: Any) -> None:
        run = self.runs[body["experimentId"]]
        if body["type"] == "scalar":
            run.scalars += [(each["key"], each["index"], each["data"]) for each in body["metrics"]]
        elif body["type"] == "media":
            run.media += body["metrics"]
        else:
            run.logs += [each["message"] for each in body["metrics"]]

    @staticmethod
    def _summary(run: Run) -> dict[str, Any]:
        last: dict[str, int] = {}
        for key, step, _ in run.scalars:
            last[key] = max(step, last.get(key, -1))
        shown: dict[str, int] = {}
        for each in run.media:
            shown[each["key"]] = max(each["index"], shown.get(each["key"], -1))
        found = {"scalar": last, "media": shown}
        return {kind: [{"key": k, "step": s} for k, s in each.items()] for kind, each in found.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInServer[SwanLabCloud]
    _is_unanswered = False

    def _any(self) -> None:
        cloud, path = self.server.cloud, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with cloud.lock:
            cloud.requests.append(f"{self.command} {path}")
        if cloud.answer == "black_hole":
            cloud.closing.wait()
        fault = cloud.next_fault()
        if fault == "refused":
            return self._send(503, {"message": "not now"})
        self._is_unanswered = fault == "unanswered"
        refused = [status for part, status in cloud.refuses.items() if part in path]
        if isinstance(cloud.answer, int) or refused:
            return self._send(refused[0] if refused else int(cloud.answer), {"message": "no"})
        if path.startswith("/storage/"):
            cloud.stored[path.removeprefix("/storage/")] = body
            return self._send(200, {})
        parts = path.removeprefix("/api/").split("/")
        if parts == ["login", "api_key"]:
            if self.headers.get("authorization") != cloud.key:
                return self._send(401, {"message": "no such key"})
            who = {"username": cloud.username, "name": "Ada"}
            return self._send(200, {"sid": "s1", "expiredAt": "2099-01-01T00:00:00.000Z", "userInfo": who})
        if "sid=s1" not in self.headers.get("Cookie", ""):
            return self._send(401, {"message": "no session"})
        with cloud.lock:
            return self._send(*cloud.reply(self.command, parts, json.loads(body) if body else None))

    do_GET = do_POST = do_PUT = _any

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""

    def _send(self, status: int, answer: Any) -> None:
        if self._is_unanswered:
            self.close_connection = True
            return
        payload = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client gave up waiting
