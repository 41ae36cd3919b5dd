"""The options of the tracker `clearml`, their defaults from ClearML's variables and configuration file, and
whether a run could be tracked there now.

The check only reads. ClearML's behaviour was observed with 2.1.12.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fmstune.trackers.network import root_cause
from fmstune.trackers.records import Check, RunStart
from fmstune.trackers.unusable import Unusable, require_writable, will_be_created

if TYPE_CHECKING:
    import requests

_LOGIN = "run `clearml-init`, or set CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY"
_NAMED = ("CLEARML_CONFIG_PATH", "CLEARML_ENV", "TRAINS_CONFIG_PATH", "TRAINS_ENV")
"""The variables that select which of ClearML's own files are read."""
_SHORTEST_NAME = 3  # for projects and tasks; the server refuses shorter names


@dataclass(frozen=True)
class ClearmlOptions:
    """Options of the tracker `clearml`. ClearML decides those that are not set."""

    project: str | None = field(
        default=None,
        metadata={"help": 'The project; else CLEARML_PROJECT, else run.group, else "fmstune".'},
    )
    task_name: str | None = field(
        default=None, metadata={"help": "The task's name; else CLEARML_TASK, else the run's own."}
    )
    tags: tuple[str, ...] = field(default=(), metadata={"help": "Tags of the task; else run.tags."})
    offline: bool | None = field(
        default=None,
        metadata={
            "help": "Write an offline session, for `clearml-task --import-offline-session`; "
            "else CLEARML_OFFLINE_MODE, else no."
        },
    )
    dir: str | None = field(
        default=None,
        metadata={
            "help": "Where to store offline sessions; else the folder offline in CLEARML_CACHE_DIR, "
            "else ~/.clearml/cache/offline."
        },
    )
    output_uri: str | None = field(
        default=None,
        metadata={
            "help": "Where images, texts and artifacts are uploaded (s3://…, gs://…, a folder); "
            "else CLEARML_DEFAULT_OUTPUT_URI, else ClearML's files server."
        },
    )


class ClearmlUnusable(Unusable):
    """What makes ClearML unusable."""


@dataclass(frozen=True, slots=True, repr=False)
class Place:
    """Where runs go: a server with its account, or the folder of offline sessions."""

    config: Any
    project: str | None
    offline: bool
    folder: Path
    output_uri: str | None
    api: str = ""
    access_key: str = ""
    secret_key: str = ""
    token: str = ""

    @property
    def server(self) -> str:
        """The server's address without a user name or password."""
        parts = urlsplit(self.api)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def project_of(self, start: RunStart) -> str:
        """The project of a run."""
        return self.project or start.group or "fmstune"


def place_of(options: ClearmlOptions, name: str) -> Place:
    """The selected location. Raises `ClearmlUnusable`."""
    from clearml.backend_api.session.defs import (
        ENV_ACCESS_KEY,
        ENV_AUTH_TOKEN,
        ENV_OFFLINE_MODE,
        ENV_SECRET_KEY,
    )
    from clearml.backend_api.session.session import Session
    from clearml.config.defs import CLEARML_CACHE_DIR, DEFAULT_CACHE_DIR, DEV_DEFAULT_OUTPUT_URI

    config = _configuration()
    offline = bool(ENV_OFFLINE_MODE.get()) if options.offline is None else options.offline
    project = options.project or os.environ.get("CLEARML_PROJECT") or None
    if project is not None and len(project.strip()) < _SHORTEST_NAME:
        detail = f"the project's name {project!r} is too short"
        raise ClearmlUnusable("bad_option", detail, f"give [trackers.{name}] one of 3 characters or more")
    cache = CLEARML_CACHE_DIR.get() or config.get("sdk.storage.cache.default_base_dir", None)
    folder = Path(options.dir or Path(os.path.expandvars(cache or DEFAULT_CACHE_DIR), "offline"))
    configured = config.get("sdk.development.default_output_uri", None)
    uri = options.output_uri or DEV_DEFAULT_OUTPUT_URI.get() or configured or None
    folder = folder.expanduser().absolute()
    if offline:
        return Place(config, project, offline, folder, None)
    return Place(
        config, project, offline, folder, str(uri) if uri else None,
        api=Session.get_api_server_host(config),
        access_key=ENV_ACCESS_KEY.get(default=config.get("api.credentials.access_key", None)) or "",
        secret_key=ENV_SECRET_KEY.get(default=config.get("api.credentials.secret_key", None)) or "",
        token=ENV_AUTH_TOKEN.get() or "",
    )  # fmt: skip


def _configuration() -> Any:
    """ClearML's configuration, read as its SDK does, but not cached after the first read."""
    from clearml.backend_config.defs import get_active_config_file

    file = get_active_config_file()
    try:
        changed = Path(file).expanduser().stat().st_mtime_ns if file else 0
        # A user's file may refer to any variable.
        named = os.environ.items() if file else ((name, os.environ.get(name, "")) for name in _NAMED)
        return _read_configuration(file, changed, tuple(sorted(named)))
    except Exception as error:  # its parser raises several types
        raise ClearmlUnusable("bad_option", f"{file} cannot be read", f"correct {file}") from error


@functools.lru_cache(maxsize=1)  # reading takes 0.14 s
def _read_configuration(file: str | None, changed: int, environment: tuple[tuple[str, str], ...]) -> Any:
    import clearml.config
    from clearml.backend_api import load_config

    return load_config(Path(str(clearml.config.__file__)).parent)


def check_place(options: ClearmlOptions, timeout: float, name: str) -> Check:
    """Whether a run could be tracked now."""
    try:
        place = place_of(options, name)
        if not place.offline:
            return ask_server(place, timeout)
        require_writable(place.folder, ClearmlUnusable)
    except ClearmlUnusable as failed:
        return failed.check
    new = will_be_created(place.folder)
    detail = f"offline, in {place.folder}{new}, to be sent with `clearml-task --import-offline-session`"
    return Check("ok", detail, server=str(place.folder))


def ask_server(place: Place, timeout: float) -> Check:
    """Log in and ask for the account. ClearML's own session would retry for minutes, and forever for an
    untrusted certificate."""
    import requests

    server = place.server
    if not server.startswith(("http://", "https://")):
        remedy = "write http://HOST:PORT in CLEARML_API_HOST or clearml.conf"
        return Check("bad_option", f"{server} is not an address of an API server", remedy, server)
    if not (place.token or (place.access_key and place.secret_key)):
        return Check("no_credentials", f"there are no credentials for {server}", _LOGIN, server)
    with requests.Session() as session:
        session.verify = _verify(place)
        began = time.perf_counter()
        try:
            answer = _ask(session, place, "auth.login", place.token, timeout / 3)
            latency = time.perf_counter() - began
            token = _data(answer).get("token")
            who = _ask(session, place, "users.get_current_user", token, timeout / 3) if token else None
        except requests.RequestException as error:
            remedy = "check the network, the proxy and CLEARML_API_HOST; or use CLEARML_OFFLINE_MODE=1"
            return Check("unreachable", f"{server}: {_cause(error)}", remedy, server)
    if answer.status_code in (401, 403):
        detail = f"{server} rejects the credentials ({answer.status_code})"
        return Check("rejected_credentials", detail, f"{_LOGIN} again", server, latency=latency)
    if answer.status_code == 429 or answer.status_code >= 500:
        return Check("unreachable", f"{server} answers {answer.status_code}", "try again later", server)
    if not token or who is None:
        detail = f"{server} answers ({answer.status_code}), but not as a ClearML API server does"
        return Check("bad_option", detail, "correct CLEARML_API_HOST or clearml.conf", server)
    if who.status_code in (401, 403):
        detail = f"{server} issued a session and then refused it ({who.status_code})"
        return Check("rejected_credentials", detail, f"{_LOGIN} again", server, latency=latency)
    if who.status_code != 200:
        return Check("unreachable", f"{server} answers {who.status_code}", "try again later", server)
    user = _data(who).get("user")
    account = str(user.get("name") or user.get("id") or "") if isinstance(user, dict) else ""
    return Check("ok", f"{account or 'an account'} of ClearML", "", server, account, latency)


def _ask(
    session: requests.Session, place: Place, action: str, token: str | None, timeout: float
) -> requests.Response:
    def bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
        # A plain header would be overridden by the entry for the host in ~/.netrc.
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    auth = bearer if token else (place.access_key, place.secret_key)
    return session.post(f"{place.api}/{action}", json={}, auth=auth, timeout=timeout, allow_redirects=False)


def _verify(place: Place) -> bool | str:
    from clearml.backend_api.session.defs import ENV_HOST_VERIFY_CERT
    from clearml.backend_config.converters import strtobool

    verify = ENV_HOST_VERIFY_CERT.get(default=place.config.get("api.verify_certificate", True))
    try:
        return bool(strtobool(verify) if isinstance(verify, str) else verify)
    except ValueError:
        return str(verify)  # the file of a certificate authority


def _data(answer: requests.Response) -> dict[str, Any]:
    try:
        found = answer.json()["data"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _cause(error: Exception) -> str:
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not trusted, or it does not speak TLS"
    return root_cause(error)
