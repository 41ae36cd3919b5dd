"""Whether SwanLab's service would accept a run now, according to its API. Creates nothing there."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from fmstune.trackers.network import root_cause, within
from fmstune.trackers.records import Check
from fmstune.trackers.swanlab.cloud import Client
from fmstune.trackers.swanlab.settings import SwanLabUnusable

LOGIN = "run `swanlab login`, or set SWANLAB_API_KEY"
_OFFLINE = "try again later; or use SWANLAB_MODE=offline"


def find_api_key(settings: Any) -> str:
    """The API key. Raises `SwanLabUnusable` without one: SwanLab's SDK would prompt for it at a terminal."""
    if not settings.api_key:
        server = server_of(settings)
        raise SwanLabUnusable("no_credentials", f"there is no API key for {server}", LOGIN, server)
    key: str = settings.api_key
    return key


def server_of(settings: Any) -> str:
    """The server's address without a user name or password."""
    parts = urlsplit(str(settings.api_host))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def ask_service(settings: Any, timeout: float) -> Check:
    """Ask the service for the account, and whether it may see the project."""
    server, key = server_of(settings), find_api_key(settings)
    try:
        return within(0.9 * timeout, lambda: _ask(settings, server, key, timeout))
    except TimeoutError:
        return Check("unreachable", f"{server}: no complete answer in {0.9 * timeout:g} s", _OFFLINE, server)


def _ask(settings: Any, server: str, key: str, timeout: float) -> Check:
    import requests

    began = time.perf_counter()
    try:
        client = Client(settings.api_host, key, timeout / 4)  # to connect and to answer, twice
    except requests.HTTPError as error:
        return _refused(error, server, time.perf_counter() - began)
    except ValueError:  # also raised by requests if the answer is not JSON
        return Check(
            "bad_option", f"{server} answers, but not as SwanLab does", "correct SWANLAB_API_HOST", server
        )
    except (requests.RequestException, OSError) as error:
        cause = root_cause(error)
        if "timed out" in cause:
            return Check("unreachable", f"{server}: no answer in {timeout / 4:g} s", _OFFLINE, server)
        remedy = "check the network, the proxy and SWANLAB_API_HOST; or use SWANLAB_MODE=offline"
        return Check("unreachable", f"{server}: {cause}", remedy, server)
    latency = time.perf_counter() - began
    owner, account = settings.project.workspace or client.username, client.username
    where = f"{owner}/{settings.project.name}"
    detail = f"{account}, writes to {where}"
    try:
        client.get(f"/project/{where}")
    except requests.HTTPError as error:
        code = getattr(error.response, "status_code", 0)
        if code in (401, 403):
            remedy = "choose another project or workspace, or ask its owner for access"
            return Check(
                "no_permission", f"{account} has no access to {where}", remedy, server, account, latency
            )
        if code != 404:
            return _refused(error, server, latency)
        detail += ", which will be created"
    except (requests.RequestException, OSError) as error:
        return Check("unreachable", f"{server}: {root_cause(error)}", _OFFLINE, server)
    return Check("ok", detail, "", server, account, latency)


def _refused(error: Any, server: str, latency: float) -> Check:
    code = getattr(error.response, "status_code", 0)
    if code in (401, 403):
        return Check(
            "rejected_credentials", f"{server} rejects the API key ({code})", f"{LOGIN} again", server,
            latency=latency,
        )  # fmt: skip
    if code == 429 or code >= 500:
        why = "too many requests" if code == 429 else "an error of the server"
        return Check("unreachable", f"{server} answers {code}, {why}", _OFFLINE, server)
    return Check(
        "bad_option",
        f"{server} answers ({code}), but not as SwanLab does",
        "correct SWANLAB_API_HOST",
        server,
    )
