"""An experiment in SwanLab's cloud, or on your own server.

The records are those of its files; its SDK's own sender turns them into requests. Nothing is stored on this
machine: what was sent is recorded in the experiment's config, under `fmstune`. SwanLab's behaviour was
observed with 0.10."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.trackers.continued import MARK
from fmstune.trackers.network import refuse_pages
from fmstune.trackers.records import TrackerError
from fmstune.trackers.swanlab.account import Account, account_of
from fmstune.trackers.swanlab.records import params_of, yaml_of
from fmstune.trackers.swanlab.series import Batch, Series

if TYPE_CHECKING:
    import requests
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

_SECONDS = 20.0
_MOST_RECORDS = 1000
_ALIVE_SECONDS = 600.0
"""How often its SDK tells the service that the run is alive (`core_python/heartbeat`)."""
_shared = threading.RLock()


def _session() -> Any:
    """A session of SwanLab's SDK, without its retries, that takes no web page for an answer."""
    from swanlab.sdk.internal.pkg.client import session

    made = session.create(default_retry=0)
    made.hooks["response"].append(refuse_pages)
    return made


class Client:
    """A session with the API: what `swanlab`'s own functions need of their client, without its retries and
    its terminal output. Raises what `requests` raises."""

    def __init__(self, host: str, key: str, timeout: float = _SECONDS) -> None:
        """Log in."""
        self._base, self._key, self._timeout = f"{host.rstrip('/')}/api", key, timeout
        self._session = _session()
        self.username = ""
        self.login()

    def login(self) -> None:
        """Start a session, which lasts some days. Raises `ValueError` if the answer is not SwanLab's."""
        answer = self._session.post(
            f"{self._base}/login/api_key",
            headers={"authorization": self._key},
            timeout=self._timeout,
            log_error=False,
            allow_redirects=False,
        )
        found = answer.json()
        if not isinstance(found, dict) or "sid" not in found:
            raise ValueError("an answer that is not SwanLab's")
        self._session.cookies.update({"sid": found["sid"]})
        self.username = str((found.get("userInfo") or {}).get("username", ""))

    def get(self, url: str, params: Any = None, retries: int | None = None, log_error: bool = True) -> Any:
        return self._request("GET", url, params=params)

    def post(self, url: str, data: Any = None, retries: int | None = None, log_error: bool = True) -> Any:
        return self._request("POST", url, json=data)

    def put(self, url: str, data: Any = None, retries: int | None = None, log_error: bool = True) -> Any:
        return self._request("PUT", url, json=data)

    def _request(self, method: str, url: str, **arguments: Any) -> Any:
        from swanlab.exceptions import ApiError
        from swanlab.sdk.internal.pkg.client import ApiResponse, decode_response

        address = f"{self._base}/{url.lstrip('/')}"
        arguments |= {"timeout": self._timeout, "log_error": False}
        try:
            answer: requests.Response = self._session.request(method, address, **arguments)
        except ApiError as error:
            if getattr(error.response, "status_code", None) != 401:
                raise
            self.login()  # the session expired before the training ended
            answer = self._session.request(method, address, **arguments)
        return ApiResponse(data=decode_response(answer), raw=answer)


@contextmanager
def used_by_sdk(client: Client) -> Iterator[None]:
    """Make the functions of SwanLab's SDK use this client: they share one per process."""
    from swanlab.sdk.internal.core_python import client as shared

    with _shared:
        before, shared._default_client = shared._default_client, client
        try:
            yield
        finally:
            shared._default_client = before


class Experiment:
    """An experiment on the service."""

    def __init__(self, client: Client, settings: Any, start: Record) -> None:
        """Create the experiment of `start`, or open the existing one and read what it holds."""
        from swanlab.sdk.internal.core_python.api.experiment import get_experiment_summary
        from swanlab.sdk.internal.core_python.context import CoreContext
        from swanlab.sdk.internal.core_python.transport.sender import HttpRecordSender
        from swanlab.sdk.internal.core_python.utils import generate_run_online_path, prepare_experiment_start
        from swanlab.sdk.internal.pkg.helper import fmt_run_path

        self.series = Series()
        self.params: dict[str, Any] = {}
        self._client = client
        self._mark: dict[str, Any] = {}
        self._alive = time.monotonic()
        with used_by_sdk(client):
            found = prepare_experiment_start(start.start)
            context = CoreContext.from_proto(settings.to_core_proto(start.start.id, Path.cwd()))
            context.set_online_params(
                found.username, found.project, found.project_data["cuid"], found.project_data.get("version"),
                found.experiment["cuid"],
            )  # fmt: skip
            self.url = f"{settings.web_host}{fmt_run_path(generate_run_online_path(found))}"
            self._context, self._sender = context, HttpRecordSender(context)
            self._sender._buffer_session = _session()
            if not found.new_experiment:
                said = get_experiment_summary(
                    context.project_id, context.experiment_id, found.experiment["createdAt"]
                )
                self._note(said)

    def begin(self, mark: dict[str, Any], after: int) -> None:
        """Start writing the events of the run with this mark, which are numbered after `after`."""
        there = self.params.pop(MARK, None)
        account = account_of(there, mark.get("run_id"), after)
        self._mark, self.series.account = mark, account or Account(after, until=after)
        if account is None:  # the existing values were logged by others
            self.series.freeze(after)

    def rename(self, start: Record) -> None:
        """Update the run's name and labels."""
        from swanlab.sdk.internal.core_python.utils import prepare_experiment_start

        with used_by_sdk(self._client):
            prepare_experiment_start(start.start)

    def has(self, seq: int) -> bool:
        """Whether it has the event of this number. Unknown: the service stores steps, not events."""
        return False

    def holds(self, last: int) -> bool:
        """Whether it still has what was sent. Assumed, not queried."""
        return True

    def write(self, batch: Batch) -> None:
        """Send the records, and all params if they have changed. Raises `requests`' errors and
        `TrackerError`; what has arrived by then is not sent again."""
        account = self.series.account
        account.announce(batch.events, batch.late)
        arrived: list[Record] = []
        try:
            if batch.params is not None:
                self.params = dict(batch.params)
            if batch.params is not None or (self._mark and batch.events):
                self._send_config()  # first, so that the next process knows what may have arrived
            for kind in ("column", "scalar", "media", "save"):
                chosen = [record for record in batch.records if record.HasField(kind)]
                for at in range(0, len(chosen), _MOST_RECORDS):
                    few = chosen[at : at + _MOST_RECORDS]
                    if kind == "media":
                        self._send_media(few, arrived)
                    else:
                        self._send(kind, few)
                        arrived += few
        except BaseException:
            known = set(map(id, arrived))
            self.series.take_back([record for record in batch.records if id(record) not in known], arrived)
            raise
        for seq in batch.events:
            account.add(seq)
        self._send_heartbeat()

    def finish(self, end: Record) -> None:
        """Send the run's status."""
        from swanlab.proto.swanlab.record.v1.record_pb2 import Record
        from swanlab.proto.swanlab.run.v1.run_pb2 import RunState
        from swanlab.proto.swanlab.terminal.v1.log_pb2 import LogLevel, LogRecord
        from swanlab.sdk.internal.core_python.api.experiment import stop_experiment

        said, where = end.finish, self._context
        if self.series.account.late:
            self.series.account.announce([], [])
            self._send_config()
        if said.state != RunState.RUN_STATE_FINISHED and said.error:
            # An error is sent as a line of the run's log, as the SDK does.
            line = LogRecord(
                line=said.error, level=LogLevel.LOG_LEVEL_ERROR, epoch=1, timestamp=said.finished_at
            )
            self._send("log", [Record(log=line)])
        with used_by_sdk(self._client):
            stop_experiment(
                where.username, where.project, where.experiment_id, state=said.state,
                finished_at=said.finished_at,
            )  # fmt: skip

    def _send(self, kind: str, batch: list[Record]) -> None:
        with used_by_sdk(self._client):
            result = getattr(self._sender, f"upload_{kind}")(batch)
        if result.failures:
            first = result.failures[0]
            raise first.exception or TrackerError(f"SwanLab did not accept a record: {first.message}.")

    def _send_media(self, batch: list[Record], arrived: list[Record]) -> None:
        """Send media in order, up to the first one whose file is refused. The SDK would send all others,
        and the next process, which only learns the last step of a series, could not see what is missing."""
        from swanlab.sdk.internal.core_python.api.upload import upload_media
        from swanlab.sdk.internal.core_python.transport.sender.media import (
            collect_media_tasks,
            put_media_resources,
        )

        where, tasks = self._context, collect_media_tasks(self._context, batch)
        failures: dict[int, BaseException] = {
            task.index: TrackerError(f"SwanLab did not accept a record: {task.failure.message}.")
            for task in tasks
            if task.failure is not None
        }
        payloads = [payload for task in tasks for payload in task.payloads]
        with used_by_sdk(self._client), _session() as storage:
            failed = put_media_resources(storage, where.experiment_id, payloads)
            failures |= {payloads[number].task_index: error for number, error in failed.items()}
            ready = tasks[: min(failures, default=len(tasks))]
            upload_media(where.project_id, where.experiment_id, metrics=[task.metric for task in ready])
        arrived += batch[: len(ready)]
        if failures:
            raise failures[len(ready)]

    def _send_config(self) -> None:
        from swanlab.proto.swanlab.record.v1.record_pb2 import Record
        from swanlab.proto.swanlab.save.v1.save_pb2 import SaveRecord, SaveType

        marked = {MARK: self.series.account.within(self._mark)} if self._mark else {}
        text = yaml_of({**self.params, **marked}).encode()
        save = SaveRecord(name="config", type=SaveType.SAVE_TYPE_CONFIG, payload=text)
        self._send("save", [Record(save=save)])

    def _note(self, summary: Any) -> None:
        for kind in ("scalar", "media"):
            for each in (summary or {}).get(kind) or ():
                self.series.note_before(each["key"], kind == "scalar", int(each["step"]))
        where = self._context
        self.params = _params_there(self._client, where.username, where.project, where.experiment_id)

    def _send_heartbeat(self) -> None:
        from swanlab.sdk.internal.core_python.api.experiment import send_experiment_heartbeat

        if time.monotonic() - self._alive > _ALIVE_SECONDS:
            self._alive = time.monotonic()
            with used_by_sdk(self._client):
                send_experiment_heartbeat(experiment_id=self._context.experiment_id)


def mark_there(client: Client, settings: Any, swanlab_id: str) -> Mapping[str, Any] | None:
    """The mark in an experiment's config: empty if there is none, `None` if there is no experiment. Changes
    nothing, unlike opening it."""
    from swanlab.exceptions import ApiError

    owner = settings.project.workspace or client.username
    try:
        found = _params_there(client, owner, settings.project.name, swanlab_id).get(MARK)
    except ApiError as error:
        if getattr(error.response, "status_code", None) == 404:
            return None
        raise
    return found if isinstance(found, Mapping) else {}


def _params_there(client: Client, owner: str, project: str, swanlab_id: str) -> dict[str, Any]:
    found = client.get(f"/project/{owner}/{project}/runs/{swanlab_id}").data
    profile = found.get("profile") if isinstance(found, Mapping) else None
    return params_of((profile or {}).get("config"))
