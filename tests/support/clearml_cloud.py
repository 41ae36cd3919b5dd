"""A stand-in for a ClearML server on 127.0.0.1: enough of its API, and of its files server, for the tracker
and for ClearML's own SDK to read a task back or to import an offline session.

clearml-server needs Elasticsearch, MongoDB and Redis, and cannot run here. The stand-in's answers follow its
source (apiserver/bll/event/event_bll.py, apiserver/bll/task): one event per task, iteration, metric, variant
and key; single-precision floats; params only in running tasks, except their properties.

    with ClearmlCloud() as cloud:
        os.environ |= cloud.environment
        ...
        (task,) = cloud.tasks.values()
"""

from __future__ import annotations

import base64
import email.parser
import itertools
import json
import math
import re
import threading
import time
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Literal, final

from tests.support.clearml_read import held
from tests.support.stand_in import StandInServer

Answer = Literal["ok", "black_hole"] | int
_MOST_SINGLE = 3.4028235e38


class Refused(Exception):
    """A request that the server answers with 400."""


@final
class ClearmlCloud:
    """The server; a context manager that listens on a free port while it is open."""

    access_key = "ACCESSKEY0123456789"
    secret_key = "secret0123456789secret0123456789"

    def __init__(self) -> None:
        self.answer: Answer = "ok"
        self.tasks: dict[str, dict[str, Any]] = {}
        self.projects: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self._events: dict[str, list[dict[str, Any]]] = {}
        self._ids = (f"{number:032x}" for number in itertools.count(1))
        self._closing = threading.Event()
        self._server = StandInServer(self, 0, _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {
            "CLEARML_API_HOST": self.url, "CLEARML_WEB_HOST": self.url, "CLEARML_FILES_HOST": self.url,
            "CLEARML_API_ACCESS_KEY": self.access_key, "CLEARML_API_SECRET_KEY": self.secret_key,
        }  # fmt: skip

    def __enter__(self) -> ClearmlCloud:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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

    def events(self, task_id: str) -> list[Any]:
        """The stored events of a task."""
        return held(self._events.get(task_id, []))

    def forget(self, task_id: str) -> None:
        """Remove a task's events, as a reset does."""
        self._events.pop(task_id)

    # -- answers ------------------------------------------------------------------------------

    def wait(self) -> int | None:
        """Wait as `answer` says; return the HTTP status to fail with, or `None` to answer normally."""
        if self.answer == "black_hole":
            self._closing.wait()
            return 503
        return self.answer if isinstance(self.answer, int) else None

    def knows(self, authorization: str) -> bool:
        """Whether these are the credentials, or the token issued for them."""
        scheme, _, value = authorization.partition(" ")
        if scheme == "Basic":
            return base64.b64decode(value).decode() == f"{self.access_key}:{self.secret_key}"
        return value == self.token()

    def token(self) -> str:
        """A token in the form that the SDK reads."""
        claims = {"exp": 4_000_000_000, "api_version": "2.23", "server_version": "1.16.0"}
        parts = [{"alg": "HS256", "typ": "JWT"}, claims]
        coded = [base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts]
        return ".".join([*coded, "c2lnbmF0dXJl"])

    def ask(self, action: str, asked: Any) -> dict[str, Any]:
        """The `data` of the answer to a request. Raises `Refused`."""
        name = "_" + re.sub(r"\W", "_", action)
        if not hasattr(self, name):
            raise Refused(f"the stand-in does not know {action}")
        found: dict[str, Any] = getattr(self, name)(asked)
        return found

    def _auth_login(self, _: Any) -> dict[str, Any]:
        return {"token": self.token()}

    def _users_get_current_user(self, _: Any) -> dict[str, Any]:
        return {"user": {"id": "u1", "name": "ada"}}

    def _projects_get_all(self, asked: Any) -> dict[str, Any]:
        named, ids = asked.get("name"), asked.get("id")
        found = [
            {"id": key, "name": name}
            for key, name in self.projects.items()
            if (not named or re.search(named, name)) and (not ids or key in ids)
        ]
        return {"projects": found}

    _projects_get_all_ex = _projects_get_all

    def _projects_get_by_id(self, asked: Any) -> dict[str, Any]:
        key = asked["project"]
        return {"project": {"id": key, "name": self.projects[key]}}

    def _projects_create(self, asked: Any) -> dict[str, Any]:
        if len(asked["name"].strip()) < 3 or asked["name"] in self.projects.values():
            raise Refused("the project's name is too short, or there")
        key = next(self._ids)
        self.projects[key] = asked["name"]
        return {"id": key}

    def _tasks_create(self, asked: Any) -> dict[str, Any]:
        key = next(self._ids)
        task = {"id": key, "status": "created", "tags": [], "hyperparams": {}, "script": {}, "comment": ""}
        now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        more = {"execution": {"artifacts": []}, "output": {"destination": ""}, "created": now, "user": "u1"}
        self.tasks[key] = task | more | {"company": "c1", "configuration": {}, "runtime": {}, "models": {}}
        self._tasks_edit({**asked, "task": key, "force": True})
        return {"id": key}

    def _tasks_get_all_ex(self, asked: Any) -> dict[str, Any]:
        wanted = {key: value for key, value in asked.items() if key.startswith("hyperparams.")}

        def is_wanted(task: dict[str, Any]) -> bool:
            if asked.get("id") and task["id"] not in asked["id"]:
                return False
            for path, values in wanted.items():
                _, section, name, _ = path.split(".")
                if task["hyperparams"].get(section, {}).get(name, {}).get("value") not in values:
                    return False
            return True

        return {"tasks": [task for task in self.tasks.values() if is_wanted(task)]}

    _tasks_get_all = _tasks_get_all_ex

    def _tasks_get_by_id(self, asked: Any) -> dict[str, Any]:
        return {"task": self._task(asked)}

    def _tasks_edit(self, asked: Any) -> dict[str, Any]:
        task = self._task(asked)
        if task["status"] != "created" and not asked.get("force"):
            raise Refused("invalid task status")
        changed = {key: value for key, value in asked.items() if key not in ("task", "force")}
        if len(changed.get("name", "xxx").strip()) < 3:
            raise Refused("the name is too short")
        task.update(changed)
        return {"updated": 1, "fields": changed}

    def _change(self, asked: Any, status: str) -> dict[str, Any]:
        task = self._task(asked)
        said = {key: asked.get(key) for key in ("status_reason", "status_message")}
        task.update({"status": status, **said})
        return {"updated": 1, "fields": {"status": status}}

    def _tasks_started(self, asked: Any) -> dict[str, Any]:
        return self._change(asked, "in_progress") | {"started": 1}

    def _tasks_completed(self, asked: Any) -> dict[str, Any]:
        return self._change(asked, "completed")

    def _tasks_stopped(self, asked: Any) -> dict[str, Any]:
        return self._change(asked, "stopped")

    def _tasks_failed(self, asked: Any) -> dict[str, Any]:
        return self._change(asked, "failed")

    def _tasks_edit_hyper_params(self, asked: Any) -> dict[str, Any]:
        task, items = self._task(asked), asked["hyperparams"]
        if any(item["section"] != "properties" for item in items):
            self._require_running(task)
        if asked.get("replace_hyperparams") == "section":
            for item in items:
                task["hyperparams"][item["section"]] = {}
        for item in items:
            task["hyperparams"].setdefault(item["section"].strip(), {})[item["name"].strip()] = item
        return {"updated": 1}

    def _tasks_add_or_update_artifacts(self, asked: Any) -> dict[str, Any]:
        task = self._task(asked)
        self._require_running(task)
        held = {each["key"]: each for each in task["execution"]["artifacts"]}
        held |= {each["key"]: each for each in asked["artifacts"]}
        task["execution"]["artifacts"] = list(held.values())
        return {"updated": 1}

    def _events_add_batch(self, asked: Any) -> dict[str, Any]:
        added, errors = 0, 0
        for event in asked:
            task, value = self.tasks.get(event["task"]), event.get("value", 0)
            if task is None or task["status"] == "published" or not -_MOST_SINGLE < value < _MOST_SINGLE:
                errors += 1
                continue
            assert math.isfinite(value)
            self._events.setdefault(event["task"], []).append(event)
            added += 1
        if not added:
            raise Refused("events were not added")
        return {"added": added, "errors": errors, "errors_info": {"refused": errors} if errors else {}}

    def _task(self, asked: Any) -> dict[str, Any]:
        task = self.tasks.get(asked["task"])
        if task is None:
            raise Refused("invalid task id")
        return task

    @staticmethod
    def _require_running(task: dict[str, Any]) -> None:
        if task["status"] not in ("created", "in_progress"):
            raise Refused("invalid task status")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInServer[ClearmlCloud]

    def do_POST(self) -> None:
        cloud, body = self.server.cloud, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        action = re.sub(r"^/(v[\d.]+/)?", "", self.path.partition("?")[0])
        with cloud.lock:
            cloud.requests.append(action or "files")
        status = cloud.wait()
        if status is None and not cloud.knows(self.headers.get("Authorization", "")):
            status = 401
        if status is not None:
            self._send(status, {"meta": _meta(status, f"stand-in says {status}"), "data": {}})
            return
        if not action:
            self._take_files(body)
            return
        try:
            lines = self.headers.get("Content-Type") == "application/json-lines"
            asked = [json.loads(line) for line in body.splitlines()] if lines else json.loads(body or "{}")
            with cloud.lock:
                self._send(200, {"meta": _meta(200, "OK"), "data": cloud.ask(action, asked)})
        except Refused as error:
            self._send(400, {"meta": _meta(400, str(error)), "data": {}})

    def do_GET(self) -> None:
        if (path := self.path.lstrip("/")) in self.server.cloud.files:
            self._answer(200, self.server.cloud.files[path], "application/octet-stream")
        else:
            self.do_POST()

    def _take_files(self, body: bytes) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        for part in email.parser.BytesParser().parsebytes(head + body).get_payload():
            assert not isinstance(part, str)
            name = part.get_param("name", header="content-disposition")
            data = part.get_payload(decode=True)
            assert isinstance(data, bytes)
            self.server.cloud.files[str(name).lstrip("/")] = data
        self._send(200, {})

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""

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


def _meta(code: int, said: str) -> dict[str, Any]:
    point = {"name": "x", "requested_version": "2.23", "actual_version": "2.23"}
    return {
        "id": "1",
        "trx": "1",
        "endpoint": point,
        "result_code": code,
        "result_subcode": 0,
        "result_msg": said,
    }
