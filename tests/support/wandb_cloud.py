"""A stand-in for the W&B cloud on 127.0.0.1: enough of its HTTP API for a real `wandb` run.

    with WandbCloud() as cloud:
        os.environ |= {"WANDB_BASE_URL": cloud.url, "WANDB_API_KEY": cloud.key}
        ...
        assert cloud.runs["abc123"].history[0]["train/loss"] == 2.5

It keeps what arrived in `runs`, tells a resumed run what it holds as the real service does, and misbehaves on
request: set `answer` at any time, also while a run is open. After `hang_up` it refuses connections until
`listen`.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Literal, final

from tests.support.stand_in import StandInServer

Answer = Literal["ok", "no_viewer", "black_hole", "slow"] | int
"""The answer to every request: the normal one (`ok`; `slow`: after `delay` seconds), a viewer that is null
(as for a key that the server does not know), no answer at all, or this HTTP status."""

# The names that SDK 0.31 gives to the streams of one file_stream request.
_HISTORY, _SUMMARY, _EVENTS = (
    "wandb-history.jsonl",
    "wandb-summary.json",
    "wandb-events.jsonl",
)


@dataclass
class CloudRun:
    """What arrived for one run."""

    id: str
    entity: str
    project: str
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """As in the API: each value wrapped in `{"value": …}`; see `params`."""
    events: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    """The last variables of the run's upsert: displayName, groupName, tags, notes, program, …"""
    exit_code: int | None = None
    opened: int = 0

    @property
    def steps(self) -> list[int]:
        """The W&B step of each history row, in the order of arrival."""
        return [row["_step"] for row in self.history]

    @property
    def params(self) -> dict[str, Any]:
        """The config without W&B's own entry and the tracker's."""
        return {key: item["value"] for key, item in self.config.items() if key not in ("_wandb", "fmstune")}


@final
class WandbCloud:
    """The server; a context manager that listens on a free port while it is open."""

    key = "fedcba9876543210" * 3
    username = "ada"
    email = "ada@example.org"

    def __init__(self, *, teams: Iterable[str] = ("nlp",), read_only: Iterable[str] = ()) -> None:
        self.teams = tuple(teams)
        self.read_only = frozenset(read_only)
        """Projects, as `entity/project`, for which the account has read access only."""
        self.answer: Answer = "ok"
        self.delay = 0.2
        self.login_page = False
        """Whether rows get a web page for an answer, as in a network that wants a login."""
        self.runs: dict[str, CloudRun] = {}
        self.requests: list[tuple[str, str]] = []
        """The path of each request, and its GraphQL operation (or an empty string)."""
        self.lock = threading.RLock()
        self._closing = threading.Event()
        self._server = StandInServer(self, 0, _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> WandbCloud:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection and stop listening, so that clients are refused."""
        self._server.stop()

    def listen(self) -> None:
        """Listen again, at the same address, after `hang_up`."""
        self._server = StandInServer(self, self._server.server_address[1], _Handler)
        self._server.start()

    # -- answers ------------------------------------------------------------------------------

    def wait(self) -> int | None:
        """Wait as `answer` says; return the HTTP status to fail with, or `None` to answer normally."""
        if self.answer == "black_hole":
            self._closing.wait()
            return 503
        if self.answer == "slow":
            self._closing.wait(self.delay)
        return self.answer if isinstance(self.answer, int) else None

    def graphql(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of the answer; empty for an unknown query."""
        if "upsertBucket" in query:
            return {"upsertBucket": self._upsert(variables)}
        if operation == "RunResumeStatus":
            return {"model": self._resume_status(variables)}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if operation == "MarkRunFilesUploaded":
            return {"markRunFilesUploaded": {"success": True}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        data: dict[str, Any] = {}
        if "viewer" in query:
            data["viewer"] = None if self.answer == "no_viewer" else self._viewer()
        if "readOnly" in query:
            path = f"{variables.get('entity')}/{variables.get('project')}"
            mine = variables.get("entity") in (self.username, *self.teams)
            data["project"] = {"readOnly": path in self.read_only} if mine else None
        return data

    def _viewer(self) -> dict[str, Any]:
        return {
            "id": "VXNlcjox",
            "entity": self.username,
            "username": self.username,
            "email": self.email,
            "flags": "{}",
            "teams": {"edges": [{"node": {"name": team}} for team in self.teams]},
        }

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.runs
        entity = variables.get("entity") or self.username
        project = variables.get("project") or "uncategorized"
        run = self.runs.setdefault(name, CloudRun(name, entity, project))
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        if variables.get("summaryMetrics"):
            run.summary |= json.loads(variables["summaryMetrics"])
        return {"bucket": self._bucket(run), "inserted": inserted}

    def _bucket(self, run: CloudRun) -> dict[str, Any]:
        return {
            "id": f"bucket-{run.id}",
            "name": run.id,
            "displayName": run.fields.get("displayName", run.id),
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {
                "id": "project",
                "name": run.project,
                "entity": {"id": "entity", "name": run.entity},
            },
            "historyLineCount": len(run.history),
        }

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(variables["name"])
        if run is None:
            return None
        run.opened += 1
        # Two layers of JSON: the tails are a list of lines, and each line is JSON itself.
        return {
            "id": "project",
            "name": run.project,
            "entity": {"id": "entity", "name": run.entity},
            "bucket": self._bucket(run)
            | {
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": 0,
                "eventsLineCount": len(run.events),
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                "eventsTail": json.dumps([json.dumps(row) for row in run.events[-1:]]),
                "tags": run.fields.get("tags", []),
                "notes": run.fields.get("notes"),
                "wandbConfig": json.dumps({"t": 1}),
            },
        }

    def file_stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Store the content of one file_stream request. Lines are placed at their offset, so that a request
        that is retried after a failure changes nothing."""
        run = self.runs[name]
        files = body.get("files") or {}
        for stream, rows in ((_HISTORY, run.history), (_EVENTS, run.events)):
            if stream in files:
                offset = files[stream].get("offset", 0)
                rows[offset:] = [json.loads(line) for line in files[stream]["content"]]
        if _SUMMARY in files:
            run.summary = json.loads(files[_SUMMARY]["content"][-1])
        if body.get("complete"):
            run.exit_code = body.get("exitcode")
        return {"limits": {}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInServer[WandbCloud]

    @property
    def cloud(self) -> WandbCloud:
        return self.server.cloud

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = json.loads(body) if body[:1] == b"{" else {}
        query = request.get("query") or ""
        operation = request.get("operationName") or _operation(query)
        with self.cloud.lock:
            self.cloud.requests.append((self.path, operation))
        status = self.cloud.wait()
        if status is None and not self._knows_key():
            status = 401
        if status is not None:
            self._send(status, {"errors": [{"message": f"stand-in says {status}"}]})
            return
        parts = self.path.strip("/").split("/")
        with self.cloud.lock:
            if parts == ["graphql"]:
                data = self.cloud.graphql(operation, query, request.get("variables") or {})
                self._send(200, {"data": data})
            elif parts[-1] == "file_stream" and self.cloud.login_page:
                self._answer(200, b"<html>Log in to this network</html>", "text/html")
            elif parts[-1] == "file_stream":
                self._send(200, self.cloud.file_stream(parts[-2], request))
            else:
                self._send(404, {})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send(200, {})

    def do_GET(self) -> None:
        self._send(404, {})

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""

    def _knows_key(self) -> bool:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            return base64.b64decode(value).decode().partition(":")[2] == self.cloud.key
        return value == self.cloud.key

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        self._answer(status, json.dumps(answer).encode(), "application/json")

    def _answer(self, status: int, payload: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client gave up waiting, as black-hole tests expect


def _operation(query: str) -> str:
    words = query.replace("(", " ").replace("{", " ").split()
    return words[1] if len(words) > 1 and words[0] in ("query", "mutation") else ""
