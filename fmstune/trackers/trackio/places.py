"""The options of the tracker `trackio`, the location that they and trackio's variables select, and whether a
run could be tracked there now.

The check only reads. trackio's behaviour was observed with 0.43.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fmstune.trackers.network import root_cause
from fmstune.trackers.records import Check, TrackerError
from fmstune.trackers.trackio.stores import LocalStore, RemoteStore, Store
from fmstune.trackers.unusable import file_obstacle, folder_obstacle, will_be_created

if TYPE_CHECKING:
    import httpx

_PROJECT = "fmstune"
_TOKEN = "set TRACKIO_WRITE_TOKEN to the token that `trackio show` prints"
_LOGIN = "run `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class TrackioOptions:
    """Options of the tracker `trackio`."""

    project: str | None = field(
        default=None, metadata={"help": 'The project; else TRACKIO_PROJECT, else "fmstune".'}
    )
    name: str | None = field(default=None, metadata={"help": "The run's name; else the run's own."})
    group: str | None = field(
        default=None, metadata={"help": "The group that the run belongs to; else run.group."}
    )
    space_id: str | None = field(
        default=None,
        metadata={
            "help": "A Space on the hub, OWNER/NAME, created when absent, with the hub's token; "
            "else TRACKIO_SPACE_ID."
        },
    )
    server_url: str | None = field(
        default=None,
        metadata={
            "help": "A server that `trackio show` started, with TRACKIO_WRITE_TOKEN; else "
            "TRACKIO_SERVER_URL, else a database below TRACKIO_DIR."
        },
    )
    private: bool | None = field(
        default=None, metadata={"help": "Whether a created Space is private; else its owner's default."}
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A trackio project: in a `space`, on a server, or else on this machine."""

    project: str
    space: str | None = None
    server: str | None = None
    write_token: str | None = None
    private: bool | None = None

    @property
    def remote(self) -> bool:
        """Whether it is reached over a network."""
        return bool(self.space or self.server)

    @property
    def page(self) -> str | None:
        """The address of its dashboard."""
        if self.space:
            return f"https://huggingface.co/spaces/{self.space}"
        return f"{self.server.rstrip('/')}/?project={self.project}" if self.server else None

    @property
    def note(self) -> str | None:
        """What the user should know about it."""
        if self.remote:
            return "its server gives points the time at which they arrive"
        return f"`trackio show --project {self.project}` shows it"


def place_of(options: TrackioOptions) -> Place:
    """The selected location. Raises `TrackerError`."""
    from trackio.utils import parse_trackio_server_url, resolve_space_id_and_server_url

    project = options.project or os.environ.get("TRACKIO_PROJECT") or _PROJECT
    space, address = options.space_id, options.server_url
    if address and parse_trackio_server_url(address)[1]:
        raise TrackerError(f"server_url must not contain a token: remove write_token, and {_TOKEN}.")
    if not (space or address):
        space, address = resolve_space_id_and_server_url(None, None)
    if space:
        if "/" not in space:
            raise TrackerError(f"space_id: {space!r} has no owner; write OWNER/NAME.")
        return Place(project, space=space, private=options.private)
    if not address:
        return Place(project)
    if not address.startswith(("http://", "https://")):
        raise TrackerError(f"server_url: {address} is not an address; write http://HOST:PORT.")
    server, token = parse_trackio_server_url(address)
    return Place(project, server=server, write_token=token or os.environ.get("TRACKIO_WRITE_TOKEN"))


def open_store(place: Place) -> Store:
    """The store of a place; a Space is created when absent. Raises what trackio raises."""
    from trackio.sqlite_storage import SQLiteStorage

    SQLiteStorage.validate_project_name(place.project)
    if place.server:
        return RemoteStore(place.project, place.server, write_token=place.write_token, hub_token=None)
    if place.space:
        from huggingface_hub import get_token
        from trackio import deploy

        if (token := get_token()) is None:  # without one, the code below would prompt at a terminal
            raise TrackerError(f"there is no hub token for the Space {place.space}: {_LOGIN}.")
        deploy.raise_if_space_is_frozen_for_logging(place.space)
        bucket = deploy.resolve_auto_bucket_id(place.space, f"{place.space}-bucket")
        deploy.create_space_if_not_exists(place.space, None, bucket, place.private)
        return RemoteStore(place.project, place.space, write_token=None, hub_token=token)
    return LocalStore(place.project)


def check_place(options: TrackioOptions, timeout: float, name: str) -> Check:
    """Whether a run could be tracked now."""
    from trackio.sqlite_storage import SQLiteStorage

    try:
        place = place_of(options)
        SQLiteStorage.validate_project_name(place.project)
    except (TrackerError, ValueError) as error:
        return Check("bad_option", str(error), f"correct [trackers.{name}]")
    if place.server:
        return _check_server(place, timeout)
    return _check_space(place, timeout) if place.space else _check_folder(place)


def _check_folder(place: Place) -> Check:
    from trackio.sqlite_storage import SQLiteStorage

    path = SQLiteStorage.get_project_db_path(place.project).absolute()
    remedy = "set TRACKIO_DIR to another folder"
    if (obstacle := file_obstacle(path) or folder_obstacle(path.parent)) is not None:
        return Check(*obstacle, remedy)
    return Check("ok", f"a database on this machine{will_be_created(path)}", server=str(path))


def _check_server(place: Place, timeout: float) -> Check:
    import httpx
    from trackio.remote_client import WRITE_TOKEN_HEADER

    server = str(place.server).rstrip("/")
    began = time.perf_counter()
    try:
        version = httpx.get(f"{server}/version", timeout=timeout / 3)
        latency = time.perf_counter() - began
        headers = {WRITE_TOKEN_HEADER: place.write_token or ""}
        asked: dict[str, Any] = {"args": [], "kwargs": {}}
        status = httpx.post(
            f"{server}/api/get_run_mutation_status", json=asked, headers=headers, timeout=timeout / 3
        )
    except httpx.HTTPError as error:
        return Check(
            "unreachable", f"{server}: {root_cause(error)}", "check the address, and start it", server
        )
    if max(version.status_code, status.status_code) >= 500:
        return Check("unreachable", f"{server} answers {version.status_code}", "try again later", server)
    data = _json(status).get("data")
    if "api_version" not in _json(version) or not isinstance(data, dict):
        detail = f"{server} answers ({version.status_code}), but not as a trackio server does"
        return Check("bad_option", detail, "correct server_url", server)
    if not place.write_token:
        return Check("no_credentials", f"{server} wants a token to write", _TOKEN, server)
    if not data.get("allowed"):
        return Check("rejected_credentials", f"{server} rejects the token", _TOKEN, server)
    return Check("ok", "a trackio server", server=server, latency=latency)


def _check_space(place: Place, timeout: float) -> Check:
    import httpx
    from huggingface_hub import constants, get_token

    space, hub = place.space, constants.ENDPOINT
    if (token := get_token()) is None:
        return Check("no_credentials", f"there is no hub token for the Space {space}", _LOGIN, hub)
    headers = {"Authorization": f"Bearer {token}"}
    began = time.perf_counter()
    try:
        who = httpx.get(f"{hub}/api/whoami-v2", headers=headers, timeout=timeout / 3)
        latency = time.perf_counter() - began
        found = httpx.get(f"{hub}/api/spaces/{space}", headers=headers, timeout=timeout / 3)
    except httpx.HTTPError as error:
        return Check("unreachable", f"{hub}: {root_cause(error)}", "check the network and the proxy", hub)
    if who.status_code == 401:
        return Check("rejected_credentials", f"{hub} rejects the token (401)", _LOGIN, hub)
    if who.status_code != 200 or found.status_code >= 500:
        code = who.status_code if who.status_code != 200 else found.status_code
        return Check("unreachable", f"{hub} answers {code}", "try again later", hub)
    account = str(_json(who).get("name", ""))
    if found.status_code == 403:
        return Check("no_permission", f"{space} cannot be seen (403)", "choose another Space", hub, account)
    if _json(found).get("sdk") == "static":
        detail = f"{space} is frozen and accepts no more runs"
        return Check("bad_option", detail, "choose another Space", hub, account)
    will_be = "" if found.status_code == 200 else ", which will be created"
    return Check("ok", f"the Space {space}{will_be}", server=hub, account=account, latency=latency)


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
