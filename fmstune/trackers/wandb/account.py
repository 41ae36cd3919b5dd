"""The W&B account that runs go to: look up its key as W&B does, and ask the server for the account.

Everything here only reads. The SDK's behaviour was observed with wandb 0.31.0.
"""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fmstune.trackers.records import Check
from fmstune.trackers.unusable import Unusable

if TYPE_CHECKING:
    import requests
    import wandb

_LOGIN = "run `wandb login`, or set WANDB_API_KEY"


class WandbUnusable(Unusable):
    """What makes W&B unusable."""

    vendor = "W&B"
    another_folder = f"{Unusable.another_folder}, or WANDB_DIR"


def find_api_key(settings: wandb.Settings) -> str | None:
    """The API key, from the sources that W&B reads; `None` when it will use an identity token instead."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    server = server_address(settings)
    token = os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    key = os.environ.get("WANDB_API_KEY")
    if key and token:
        detail = "WANDB_API_KEY and WANDB_IDENTITY_TOKEN_FILE are both set"
        raise WandbUnusable("bad_option", detail, "unset one of them", server)
    if token:
        if not Path(token).is_file():
            detail = f"there is no identity token file {token}"
            raise WandbUnusable("no_credentials", detail, _LOGIN, server)
        return None
    try:
        key = key or wbauth.read_netrc_auth(host=settings.base_url) or settings.api_key
        if not key:
            raise WandbUnusable("no_credentials", f"there is no API key for {server}", _LOGIN, server)
        usable: str = wbauth.AuthApiKey(host=settings.base_url, api_key=key).api_key
    except AuthenticationError as error:
        detail = f"the API key is malformed: {str(error).rstrip('.')}"
        raise WandbUnusable("bad_option", detail, _LOGIN, server) from None
    return usable


_QUERY = "query Viewer { viewer { username entity teams { edges { node { name } } } } }"
_QUERY_WITH_PROJECT = """
query Viewer($entity: String!, $project: String!) {
  viewer { username entity teams { edges { node { name } } } }
  project(name: $project, entityName: $entity) { readOnly }
}"""


def ask_server(settings: wandb.Settings, key: str, server: str, timeout: float) -> Check:
    """Ask the server for the account. `wandb.login(verify=True)` would write `~/.netrc` first, and reports a
    server that does not answer as a wrong key."""
    import requests

    entity, project = settings.entity, settings.project or "fmstune"
    body: dict[str, Any] = {
        "query": _QUERY_WITH_PROJECT if entity else _QUERY,
        "variables": {"entity": entity, "project": project} if entity else {},
    }
    proxies = (("http", settings.http_proxy), ("https", settings.https_proxy))
    began = time.perf_counter()
    try:
        answer = requests.post(
            f"{settings.base_url}/graphql",
            json=body,
            auth=("api", key),
            headers=settings.x_extra_http_headers,
            # A None here would hide the environment's.
            proxies={name: proxy for name, proxy in proxies if proxy},
            verify=not settings.insecure_disable_ssl,
            timeout=timeout / 2,  # for the connection, and again for the answer
            allow_redirects=False,
        )
    except requests.RequestException as error:
        remedy = "check the network, the proxy and WANDB_BASE_URL; or use WANDB_MODE=offline"
        return Check("unreachable", f"{server}: {_cause(error, timeout)}", remedy, server)
    latency = time.perf_counter() - began
    return _judge(answer, server, entity, project, latency)


def _judge(answer: requests.Response, server: str, entity: str | None, project: str, latency: float) -> Check:
    code = answer.status_code
    if code in (401, 403):
        detail = f"{server} rejects the API key ({code})"
        if entity and code == 403:
            detail += f", or its use for {entity}"
        return Check("rejected_credentials", detail, f"{_LOGIN} again", server, latency=latency)
    if code == 429 or code >= 500:
        why = "too many requests" if code == 429 else "an error of the server"
        detail = f"{server} answers {code}, {why}"
        return Check("unreachable", detail, "try again later; or use WANDB_MODE=offline", server)
    try:
        data = answer.json()["data"] or {}
        viewer, found = data.get("viewer"), data.get("project") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        detail = f"{server} answers ({code}), but not as a W&B server does"
        return Check("bad_option", detail, "correct WANDB_BASE_URL", server)
    if not viewer:
        detail = f"{server} does not know the API key"
        return Check("rejected_credentials", detail, f"{_LOGIN} again", server, latency=latency)
    account = viewer["username"] or viewer["entity"]
    teams = [edge["node"]["name"] for edge in (viewer.get("teams") or {}).get("edges", [])]
    read_only = found.get("readOnly")
    if entity and read_only:
        detail = f"{account} may only read the project {entity}/{project}"
        remedy = "choose another project, or ask the team for write access"
        return Check("no_permission", detail, remedy, server, account, latency)
    # An administrator may write to teams without being a member: the project itself then says so.
    if entity and read_only is None and entity not in (account, viewer.get("entity"), *teams):
        detail = f"{account} is not in {entity}"
        remedy = f"choose the entity among {', '.join([account, *teams])}"
        return Check("no_permission", detail, remedy, server, account, latency)
    where = f"{entity or viewer.get('entity') or account}/{project}"
    return Check("ok", f"{account}, writes to {where}", "", server, account, latency)


def _cause(error: BaseException, timeout: float) -> str:
    """The root cause of a connection error in a few words; the chain is requests, urllib3, socket."""
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer in {timeout / 2:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not trusted, or it does not speak TLS"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy does not let us through"
    root: BaseException | None = error
    while root is not None:
        if isinstance(root, socket.gaierror):
            return "its name cannot be resolved"
        if isinstance(root, ConnectionRefusedError):
            return "the connection is refused"
        error, root = root, root.__cause__ or root.__context__
    return f"no connection ({type(error).__name__})"


def server_address(settings: wandb.Settings) -> str:
    """The server's address without user name and password."""
    parts = urlsplit(str(settings.base_url))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def reason(error: Exception) -> str:
    """Why a setting is refused, without the password that an address may contain."""
    text = str(error)
    if problems := getattr(error, "errors", None):  # pydantic's own text quotes the value
        first = problems()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return re.sub(r"//[^/@\s]+@", "//", text).rstrip(".")
