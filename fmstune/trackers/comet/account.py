"""Whether an experiment could be tracked in Comet now: its key, its server, the workspace and the project.

Everything here only reads. The SDK's behaviour was observed with comet_ml 3.58.8.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fmstune.trackers.comet.service import Http
from fmstune.trackers.comet.settings import (
    LOGIN,
    CometOptions,
    CometUnusable,
    Settings,
    api_key,
    disabled,
    found_settings,
)
from fmstune.trackers.network import root_cause
from fmstune.trackers.records import Check
from fmstune.trackers.unusable import require_writable

if TYPE_CHECKING:
    import requests


def required_key(settings: Settings) -> str:
    """The API key. Raises `CometUnusable` without one; the SDK would prompt at a terminal."""
    key = api_key(settings.config)
    if key is None:
        detail = f"there is no API key for {settings.shown_server}"
        remedy = f"{LOGIN}; or use mode=offline"
        raise CometUnusable("no_credentials", detail, remedy, settings.shown_server)
    return key


def check_account(options: CometOptions, timeout: float) -> Check:
    """Whether an experiment could be tracked now."""
    try:
        settings = found_settings(options)
        if settings.mode == "disabled":
            return Check("ok", disabled())
        if settings.mode == "offline":
            require_writable(settings.folder, CometUnusable)
            detail = f"offline, in {settings.folder}, to be sent later with `comet upload`"
            return Check("ok", detail, server=str(settings.folder))
        return _ask(settings, required_key(settings), timeout)
    except CometUnusable as failed:
        return failed.check


def _ask(settings: Settings, key: str, timeout: float) -> Check:
    server = settings.shown_server
    http = Http(settings, key, timeout / 6)  # three times to connect and to answer
    began = time.perf_counter()
    try:
        answer = http.ask("account-details")
        latency = time.perf_counter() - began
        if (check := _refused(answer, server)) is not None:
            return check
        account = _json(answer)
        if not isinstance(account.get("userName"), str):
            return _another(answer, server)
        answer = http.ask("workspaces")
        if (check := _refused(answer, server)) is not None:
            return check
        workspaces = _json(answer).get("workspaceNames")
        if not isinstance(workspaces, list):
            return _another(answer, server)
        workspace = settings.workspace or str(account.get("defaultWorkspaceName") or "")
        user = account["userName"]
        if settings.workspace and settings.workspace not in workspaces:
            detail = f"{user} is not in the workspace {settings.workspace}"
            remedy = f"choose among {', '.join(map(str, workspaces)) or 'those of another account'}"
            return Check("no_permission", detail, remedy, server, user, latency)
        answer = http.ask("projects", workspaceName=workspace)
        if (check := _refused(answer, server)) is not None:
            return check
        projects = _json(answer).get("projects") or []
        if not isinstance(projects, list):
            return _another(answer, server)
        there = any(
            isinstance(each, dict) and each.get("projectName") == settings.project for each in projects
        )
        detail = (
            f"{user}, writes to {workspace}/{settings.project}{'' if there else ', which will be created'}"
        )
        return Check("ok", detail, "", server, user, latency)
    except OSError as error:
        remedy = "check the network, the proxy and COMET_URL_OVERRIDE; or use mode=offline"
        return Check("unreachable", f"{server}: {_cause(error, timeout)}", remedy, server)
    finally:
        http.close()


def _another(answer: requests.Response, server: str) -> Check:
    detail = f"{server} answers ({answer.status_code}), but not as Comet's server does"
    return Check("bad_option", detail, "correct COMET_URL_OVERRIDE", server)


def _refused(answer: requests.Response, server: str) -> Check | None:
    code = answer.status_code
    if code in (400, 401, 403):
        return Check(
            "rejected_credentials", f"{server} rejects the API key ({code})", f"{LOGIN} again", server
        )
    if code == 429 or code >= 500:
        why = "too many requests" if code == 429 else "an error of the server"
        remedy = "try again later; or use mode=offline"
        return Check("unreachable", f"{server} answers {code}, {why}", remedy, server)
    return None


def _json(answer: requests.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _cause(error: OSError, timeout: float) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer in {timeout / 6:.1f} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not trusted, or it does not speak TLS"
    return root_cause(error)
