"""Tasks on a ClearML server, through the session of ClearML's SDK and the server's REST interface.

The SDK's behaviour was observed with 2.1.12, the server's is from the source of clearml-server 2.
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.trackers.clearml.events import Event
from fmstune.trackers.clearml.places import ClearmlUnusable, Place, ask_server
from fmstune.trackers.clearml.stores import (
    MADE_AS,
    PROPERTIES,
    STATUSES,
    Labels,
    Task,
    Uploaded,
    artifacts_of,
    is_published,
    mark_of,
    properties,
    safe,
)
from fmstune.trackers.network import refuse_pages
from fmstune.trackers.records import Artifact, Status, TrackerError

if TYPE_CHECKING:
    import requests
    from clearml.backend_api.session.session import Session

_VERSION = "2.13"
"""The version of the server's API: that of server 1.0, which later ones also support."""
_TIMEOUT = (5.0, 20.0)
"""Seconds to connect, and for each response; a shipper that is silent for a minute counts as hung."""
_LONGEST_BODY = 15_000_000
"""Bytes per request. The SDK drops a larger event and only logs it."""
_FIELDS = ("id", "status", "name", "tags", "comment", "project", "hyperparams.properties")


class ServerStore:
    """One task on a server."""

    def __init__(self, place: Place) -> None:
        check = ask_server(place, 3 * _TIMEOUT[1])
        if check.outage:
            raise ConnectionError(f"{check.detail}; {check.remedy}")
        if not check.ok:
            raise ClearmlUnusable(check.state, check.detail, check.remedy, check.server)
        self._place = place
        self._session = _connected(place)
        self._id = self._folder = ""
        self._running = False

    def find(self, task_id: str) -> Task | None:
        found = self._ask("tasks.get_all_ex", id=[task_id], only_fields=list(_FIELDS), search_hidden=True)
        return next((self._known(each) for each in found["tasks"]), None)

    def made_as(self, labels: Labels, new_run_id: str) -> Task | None:
        asked = {f"hyperparams.{PROPERTIES}.{MADE_AS}.value": [new_run_id]}
        found = self._ask("tasks.get_all_ex", only_fields=list(_FIELDS), **asked)
        return next((self._known(each) for each in found["tasks"]), None)

    def create(self, labels: Labels, new_run_id: str | None) -> Task:
        said = {"tags": list(labels.tags), "comment": labels.comment or ""}
        made = self._ask(
            "tasks.create", name=labels.name, type="training", project=self._project(labels.project),
            hyperparams={PROPERTIES: properties({}, new_run_id)}, system_tags=["development"], **said,
        )  # fmt: skip
        found = self.find(made["id"])
        if found is None:
            raise TrackerError(f"the task {made['id']} was created, but does not exist.")
        return found

    def begin(self, task: Task, labels: Labels) -> Task:
        found = self._ask("tasks.get_all_ex", id=[task.id], only_fields=list(_FIELDS), search_hidden=True)
        now = found["tasks"][0]
        wanted: dict[str, Any] = {"name": labels.name}
        wanted["tags"] = sorted({*(now.get("tags") or []), *labels.tags})
        if labels.comment:
            wanted["comment"] = labels.comment
        changed = {key: value for key, value in wanted.items() if value != (now.get(key) or [])}
        if changed:
            self._ask("tasks.edit", task=task.id, force=True, **changed)
        self._id, self._running = task.id, now["status"] == "in_progress"
        project = self._ask("projects.get_all", id=[now["project"]], only_fields=["name"])["projects"]
        name = project[0]["name"] if project else labels.project
        self._folder = f"{safe(name)}/{safe(labels.name)}.{task.id}"
        self._run()
        return task

    def write(self, events: Sequence[Event], mark: Mapping[str, Any]) -> None:
        lines = [{**event, "task": self._id} for event in events]
        for line in lines:
            if (size := len(json.dumps(line))) > _LONGEST_BODY:
                name = f"{line['metric']}/{line['variant']}"
                raise ValueError(f"{name} has {size / 1e6:.0f} MB; the server accepts 15 MB at once")
        if lines:
            answers = self._session.send_request_batch(
                "events", "add_batch", version=_VERSION, json=lines, method="post"
            )
            for answer in answers:
                said = _response_data(answer, "events.add_batch")
                if said.get("errors"):
                    raise TrackerError(f"ClearML's server refused events: {said.get('errors_info')}.")
        if mark:
            items = list(properties(mark).values())
            self._ask("tasks.edit_hyper_params", task=self._id, hyperparams=items, force=True)

    def set_params(self, section: str, items: Sequence[Mapping[str, Any]]) -> None:
        asked = {"hyperparams": list(items), "replace_hyperparams": "section", "force": True}
        if len(json.dumps(asked)) > _LONGEST_BODY:
            raise ValueError(f"the params {section} exceed the 15 MB that the server accepts at once")
        self._run()
        try:
            self._ask("tasks.edit_hyper_params", task=self._id, **asked)
        except TrackerError:
            # A user may have stopped the task on its page, or the server, which does so after two hours
            # without an event: it then accepts no params.
            found = self.find(self._id)
            if found is None or found.status == "in_progress" or is_published(found):
                raise
            self._running = False
            self._run()
            self._ask("tasks.edit_hyper_params", task=self._id, **asked)

    def put_file(self, path: str, file: Path) -> tuple[str, str]:
        from clearml.backend_api.session.session import Session

        target = self._place.output_uri or Session.get_files_server_host(self._place.config)
        key = f"{self._folder}/{path}"
        url = f"{target.rstrip('/')}/{key}"
        if target.startswith(("http://", "https://")):
            self._upload(target, key, file)
            return key, url
        from clearml.storage.helper import StorageHelper

        helper = StorageHelper.get(url)
        if helper is None:  # it has logged why
            raise TrackerError(f"ClearML cannot write to {target}; see its settings of that storage.")
        return key, str(helper.upload(str(file), url, retries=1))

    def put_artifact(self, artifact: Artifact, files: Sequence[Uploaded]) -> None:
        moment = int(artifact.time or time.time())
        made = artifacts_of(artifact, files, moment)
        self._run()
        for at in range(0, len(made), 500):
            self._ask("tasks.add_or_update_artifacts", task=self._id, artifacts=made[at : at + 500])

    def end(self, status: Status, error: str | None) -> None:
        said = {"status_reason": error[:1000], "status_message": error[:1000]} if error else {}
        self._ask(f"tasks.{STATUSES[status]}", task=self._id, force=True, **said)
        self._running = False

    def resume(self) -> None:
        self._run()

    def holds(self) -> bool:
        return True  # it answers, or raises

    # -- the rest -----------------------------------------------------------------------------

    def _known(self, task: Mapping[str, Any]) -> Task:
        from clearml.backend_api.session.session import Session

        found = mark_of(task.get("hyperparams"))
        if task["status"] in ("created", "queued") and found.get("last_event"):
            found["last_event"] = 0  # it was reset, which removes its events only
        try:
            web = Session.get_app_server_host(self._place.config)
        except ValueError:  # it cannot derive it from the server's address
            web = ""
        kind = "tasks" if self._session.check_min_api_server_version("2.31") else "experiments"
        page = f"{web.rstrip('/')}/projects/{task.get('project') or '*'}/{kind}/{task['id']}/output/log"
        return Task(task["id"], task["status"], found, page if web else None)

    def _project(self, name: str) -> str:
        """The project of this name, created when absent."""
        for attempt in range(2):
            pattern = f"^{re.escape(name)}$"
            found = self._ask(
                "projects.get_all", name=pattern, only_fields=["id", "name"], search_hidden=True
            )
            for each in found["projects"]:
                if each["name"] == name:
                    return str(each["id"])
            try:
                return str(self._ask("projects.create", name=name, description="")["id"])
            except TrackerError:
                if attempt:  # another run may have created it meanwhile
                    raise
        raise AssertionError(name)

    def _run(self) -> None:
        """Set the task to running: a stopped one accepts no params."""
        if not self._running:
            self._ask("tasks.started", task=self._id, force=True)
            self._running = True

    def _ask(self, action: str, **asked: Any) -> dict[str, Any]:
        service, _, name = action.partition(".")
        answer = self._session.send_request(service, name, version=_VERSION, method="post", json=asked)
        return _response_data(answer, action)

    def _upload(self, target: str, key: str, file: Path) -> None:
        """Send a file to ClearML's files server, in a separate request: the SDK's upload would retry for
        minutes, and needs a second session."""
        import requests
        from requests_toolbelt import MultipartEncoder

        with file.open("rb") as data:
            body = MultipartEncoder({f"/{key}": (key, data, "application/octet-stream")})
            headers = self._session.add_auth_headers({"Content-Type": body.content_type})
            answer = requests.post(
                target, data=body, headers=headers, timeout=_TIMEOUT, hooks={"response": refuse_pages}
            )
        if answer.status_code != 200:
            raise TrackerError(f"ClearML's files server {target} answers {answer.status_code}.")


def _response_data(answer: requests.Response | None, action: str) -> dict[str, Any]:
    """The server's response data; raises `TrackerError` with its reason."""
    assert answer is not None  # except in an offline session
    try:
        found = answer.json()
        data, reason = found.get("data"), found.get("meta", {}).get("result_msg")
    except (ValueError, AttributeError):
        data, reason = None, None
    if answer.status_code != 200 or not isinstance(data, dict):
        raise TrackerError(
            f"ClearML's server answers {answer.status_code} to {action}: {reason or 'no reason'}."
        )
    return data


class _BoundedRetries:
    """ClearML's configuration, without the settings that make it wait forever."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def get(self, key: str, *default: Any, **named: Any) -> Any:
        if key == "api.http.wait_on_maintenance_forever":
            return False
        return self._config.get(key, *default, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


@functools.cache
def _session_class() -> type[Session]:
    from clearml.backend_api.session.session import Session

    class Connection(Session):  # type: ignore[misc]
        """A session that gives up: by default each request is tried 240 times, for 300 s each."""

        _offline_mode = False  # CLEARML_OFFLINE_MODE may differ from the tracker's option
        _session_initial_timeout = _session_timeout = _write_session_timeout = _TIMEOUT

    return Connection


def _connected(place: Place) -> Session:
    # A request without a response may or may not have been processed: it is not sent twice.
    retries = {"total": 2, "connect": 2, "read": 0, "status": 1, "redirect": 2, "backoff_factor": 0.2}
    # Each event carries the name of its worker, by default the machine's.
    return _session_class()(
        worker=os.environ.get("CLEARML_WORKER_NAME") or "fmstune", host=place.api,
        api_key=place.access_key or None, secret_key=place.secret_key or None,
        config=_BoundedRetries(place.config), http_retries_config=retries,
    )  # fmt: skip
