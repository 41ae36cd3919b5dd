"""An experiment on Comet's server. When a request returns, the server has its contents; else it raises.

The SDK's own requests are used, without its queue and its retries, which end silently after the last one. The
SDK's behaviour was observed with comet_ml 3.58.8.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from fmstune.trackers.comet.items import Asset, Events, Item, Other, Param, Point
from fmstune.trackers.comet.settings import Settings
from fmstune.trackers.continued import MARK
from fmstune.trackers.network import refuse_pages
from fmstune.trackers.records import Status, TrackerError, utf8

if TYPE_CHECKING:
    import requests

_TIMEOUT = 15.0
"""Seconds per request; a shipper that is silent for a minute counts as hung."""
_FILE_TIMEOUT = 300.0
_LONGEST_PAUSE = 25.0
_MOST_ITEMS = 1000
"""The number of points and params that the SDK sends at once."""
_MOST_TEXT = 1000
_FIRST_HEARTBEAT = 10
_EXISTS = 90999
"""Comet's code for an experiment that already exists."""


class CometUnavailable(OSError):
    """The server accepts nothing now: it is overloaded, or the limit of this minute is reached."""


class Http:
    """Requests to Comet's server with a key. They raise `OSError` when it does not answer or is overloaded,
    and `TrackerError` when it refuses."""

    def __init__(self, settings: Settings, key: str, timeout: float = _TIMEOUT) -> None:
        from comet_ml.connection.connection_api import LowLevelHTTPClient
        from comet_ml.utils import get_root_url

        self._key, self._shown = key, settings.shown_server
        self._clientlib = settings.server
        self._rest = urljoin(get_root_url(settings.server), "/api/rest/v2/")
        self._client = LowLevelHTTPClient(
            api_key=key, server_address=settings.server, default_timeout=timeout, config=settings.config,
            verify_tls=settings.config["comet.internal.check_tls_certificate"], default_retry=False,
        )  # fmt: skip
        self._client.session.hooks["response"].append(refuse_pages)

    def post(
        self, path: str, payload: Mapping[str, Any], *, rest: bool = False, compress: bool = False
    ) -> Any:
        """Send a request to the client library's API, or the REST API; return the answer."""
        url = urljoin(self._rest if rest else self._clientlib, path)
        answer = self._client.post(url, payload, compress=compress)
        if (pause := _pause(answer)) is not None:
            # The rate limit per minute. A new process could do no better, and would read everything again.
            time.sleep(pause)
            answer = self._client.post(url, payload, compress=compress)
        return self._checked(answer, path)

    def get(self, path: str, **params: str) -> Any:
        """The REST API's data."""
        return self._checked(self._client.get(urljoin(self._rest, path), params), path)

    def ask(self, path: str, **params: str) -> requests.Response:
        """The REST API's response, whatever its status."""
        found: requests.Response = self._client.get(urljoin(self._rest, path), params)
        return found

    def send(self, asset: Asset, where: Mapping[str, Any]) -> None:
        """Send a file."""
        from comet_ml.connection.connection_upload import send_file, send_file_like

        path = "visualizations/upload" if asset.kind == "visualization" else "asset/upload"
        rest: dict[str, Any] = {
            "params": {**where, **{key: value for key, value in asset.params().items() if value is not None}},
            "headers": {"Authorization": self._key}, "timeout": (_TIMEOUT, _FILE_TIMEOUT),
            "session": self._client.session, "metadata": dict(asset.metadata),
        }  # fmt: skip
        url = urljoin(self._clientlib, path)
        if isinstance(asset.content, bytes):
            answer = send_file_like(url, asset.content, **rest)
        else:
            answer = send_file(url, str(asset.content), **rest)
        self._checked(answer, asset.name)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _checked(self, answer: requests.Response, what: str) -> Any:
        code = answer.status_code
        if code < 300:
            return _json(answer)
        if code == 429 or code >= 500:
            why = "more than it accepts per minute" if code == 429 else "an error of the server"
            raise CometUnavailable(f"{self._shown} answers {code}, {why}")
        raise Refused(f"{self._shown} refuses {what} ({code}): {_reason(answer)}", _code(answer))


class Refused(TrackerError):
    """The server refuses something; `code` is Comet's own code for the reason."""

    def __init__(self, text: str, code: int) -> None:
        self.code = code
        super().__init__(text)


def _json(answer: requests.Response) -> dict[str, Any]:
    """The response's data, if any: many have none."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _code(answer: requests.Response) -> int:
    found = _json(answer).get("sdk_error_code")
    return found if isinstance(found, int) else 0


def _pause(answer: requests.Response) -> float | None:
    """After how many seconds the server accepts more, if it says so."""
    said = answer.headers.get("Retry-After-Custom", "") if answer.status_code == 429 else ""
    return min(float(said) + 0.5, _LONGEST_PAUSE) if re.fullmatch(r"\d+(\.\d*)?", said) else None


def _reason(answer: requests.Response) -> str:
    text = str(_json(answer).get("msg") or answer.text)
    return " ".join(text.split())[:300].rstrip(".") or "it does not say why"


class Service:
    """One experiment on the server, created if none has this key."""

    def __init__(self, settings: Settings, api_key: str, key: str) -> None:
        from comet_ml.utils import get_comet_version

        self.key, self._settings, self._api_key = key, settings, api_key
        self._http = Http(settings, api_key)
        said = {"apiKey": api_key, "local_timestamp": _now(), "libVersion": get_comet_version()}
        where = {"projectName": settings.project, "teamName": settings.workspace, "offline": False}
        try:
            made = self._http.post(
                "logger/add/run", {**said, **where, "experimentKey": key, "getOrCreateEnabled": True}
            )
        except Refused as refused:
            if refused.code != _EXISTS:
                raise
            # A self-hosted server that is too old to know the last of these.
            made = self._http.post("logger/get/run", {**said, "previousExperiment": key})
        if "runId" not in made:
            shown = settings.shown_server
            raise TrackerError(f"{shown} does not answer as Comet's server; correct COMET_URL_OVERRIDE.")
        self._run_id, self._project_id = made["runId"], made.get("project_id")
        focus = made.get("focusUrl")
        self.page: str | None = f"{focus}{key}" if focus else None
        self.mark = self._read_mark()
        self.events = Events(self.mark.get("events", ()))
        self.params: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self._there: Counter[tuple[str, int | None, int]] = Counter()
        self._assets: set[str] = set()
        self._all_known = True
        self._heart: Any = None
        self.note: str | None = None

    def begin(self, mark: Mapping[str, Any]) -> None:
        """Start writing; find what a killed process has sent without recording it."""
        own = self.mark.get("run_id") == mark.get("run_id")
        if not own:
            self.events = Events()
        if self.mark and not self.mark.get("ended"):
            self._query_stored()
            self._all_known = not own
        self._mark = dict(mark)
        self._write_mark(ended=False)
        self._send_heartbeat()
        self._start_heartbeat()

    def write(self, items: list[Item], events: Sequence[int]) -> None:
        """Send the items, which belong to these events, and remove each from `items` once it has arrived."""
        while items:
            kind, few = next(itertools.groupby(items[:_MOST_ITEMS], type))
            some = list(few)
            if kind is Point:
                self._send_batch("metric", [item for item in some if not self._is_stored(item)])
            elif kind is Param:
                self._send_batch("parameter", some)
            else:
                some = some[:1]
                self._send_one(some[0])
            del items[: len(some)]
        for seq in events:
            self.events.add(seq)

    def holds(self, last: int) -> bool:
        """Assumed: the server shows some of what it has accepted only later."""
        return True

    def end(self, status: Status, error: str | None, others: list[Item], tags: Sequence[str]) -> None:
        """End the experiment: Comet's states are running, finished and crashed."""
        self._stop_heartbeat()
        self.write(others, ())
        self._write_mark(ended=True)
        self._send_heartbeat(alive=False)
        self._http.post(
            "write/experiment/update-status",
            {
                "experimentKey": self.key, "isAlive": False, "hasCrashed": status == "failed",
                "error": None if status == "finished" else utf8(error or status)[:_MOST_TEXT],
            },
            rest=True,
        )  # fmt: skip
        self._http.close()

    def add_tags(self, tags: Sequence[str]) -> None:
        """Add tags; existing ones stay."""
        there = self._http.get("experiment/tags", experimentKey=self.key).get("tags") if self.mark else None
        tags = [tag for tag in tags if tag not in (there or ())]
        if tags:
            said = {"experimentKey": self.key, "addedTags": tags}
            self._http.post("write/experiment/tags", said, rest=True)

    def abandon(self) -> None:
        """Leave it unchanged."""
        self._http.close()

    # -- the rest -----------------------------------------------------------------------------

    def _send_batch(self, what: str, items: Sequence[Item]) -> None:
        values = [item.message().to_batch_message_dict() for item in items if not isinstance(item, Asset)]
        if values:
            payload = {"experimentKey": self.key, "values": values}
            self._http.post(f"batch/logger/experiment/{what}", payload, compress=True)

    def _send_one(self, item: Item) -> None:
        if isinstance(item, Other):
            said = {"experimentKey": self.key, "key": item.key, "value": item.value}
            self._http.post("write/experiment/log-other", said, rest=True)
        elif isinstance(item, Asset) and item.id not in self._assets:
            where = {"experimentId": self.key, "projectId": self._project_id, "runId": self._run_id}
            self._http.send(item, where)
            self._assets.add(item.id)

    def _read_mark(self) -> dict[str, Any]:
        """fmstune's mark on it: which events it holds, and whether it was ended."""
        others = self._http.get("experiment/log-other", experimentKey=self.key).get("values") or ()
        text = next((each.get("valueCurrent") for each in others if each.get("name") == MARK), "")
        try:
            found = json.loads(text)
        except (ValueError, TypeError):  # there is none, or it was edited
            return {}
        return found if isinstance(found, dict) else {}

    def _write_mark(self, *, ended: bool) -> None:
        if not self._mark:
            return
        spans = self.events.spans
        # The service accepts strings of a thousand characters. With more spans, and after a kill, the
        # next process queries what is there.
        whole = self._all_known and len(spans) <= 20
        said = {**self._mark, "events": spans if whole else spans[:1], "ended": ended and whole}
        self._send_one(Other(MARK, json.dumps(said)))

    def _query_stored(self) -> None:
        for point in (
            self._http.get("experiment/metrics/get-all", experimentKey=self.key).get("metrics") or ()
        ):
            self._there[point["metricName"], point.get("step"), int(point.get("timestamp") or 0)] += 1
        assets = self._http.get("experiment/asset/list", experimentKey=self.key, type="all")
        self._assets = {str(each["assetId"]) for each in assets.get("assets") or () if each.get("assetId")}

    def _is_stored(self, item: Any) -> bool:
        where = (item.name, item.step, item.time)
        if not self._there[where]:
            return False
        self._there[where] -= 1
        return True

    def _send_heartbeat(self, *, alive: bool = True) -> None:
        """Send a heartbeat: Comet considers an experiment without one as ended."""
        self._http.post(
            "status-report/update",
            {
                "apiKey": self._api_key, "runId": self._run_id, "experimentKey": self.key,
                "projectId": self._project_id, "is_alive": alive, "local_timestamp": _now(), "offline": False,
            },
        )  # fmt: skip

    def _start_heartbeat(self) -> None:
        from comet_ml.connection.connection_api import RestServerConnection
        from comet_ml.heartbeat import HeartbeatThread

        connection = RestServerConnection(
            self._api_key, self.key, self._settings.server, _TIMEOUT, config=self._settings.config,
            verify_tls=self._settings.config["comet.internal.check_tls_certificate"],
        )  # fmt: skip
        connection.run_id, connection.project_id = self._run_id, self._project_id
        self._heart = HeartbeatThread(_FIRST_HEARTBEAT, connection.heartbeat)
        self._heart.start()

    def _stop_heartbeat(self) -> None:
        if self._heart is not None:
            self._heart.close()
            self._heart.join(_TIMEOUT)  # else a heartbeat in flight could mark it alive again
            self._heart = None


def _now() -> int:
    return int(1000 * time.time())
