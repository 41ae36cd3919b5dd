"""Whether a run could be tracked now in an Aim repository, or by an Aim server."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

from fmstune.trackers.aim.repository import examine
from fmstune.trackers.network import root_cause
from fmstune.trackers.records import Check
from fmstune.trackers.unusable import folder_obstacle

REMOTE = "aim://"


def check_folder(folder: Path, option: str) -> Check:
    path = str(folder.resolve())
    found = examine(folder)
    if found.state == "damaged":
        return Check(
            "broken",
            f"the repository {path} is damaged: {found.why}",
            f"move its .aim away, or choose another: {option}",
        )
    if found.state == "older":
        return Check(
            "no_permission",
            f"the repository {path} was made by an older Aim",
            f"run `aim upgrade --repo {path}`, or choose another: {option}",
        )
    written = folder if found.state == "missing" else folder / ".aim"
    if (obstacle := folder_obstacle(written.absolute())) is not None:
        return Check(*obstacle, f"choose another: {option}")
    will_be = {
        "missing": ", will be created",
        "unfinished": ", whose creation is unfinished: a run completes it",
    }
    return Check("ok", f"repository{will_be.get(found.state, '')}", server=path)


def check_server(url: str, timeout: float, option: str) -> Check:
    import requests

    parts = urlsplit(url)
    try:
        address = f"{parts.hostname}:{parts.port}"
    except ValueError:
        address = ""
    if not url.startswith(REMOTE) or not parts.hostname or not address or parts.port is None:
        return Check("bad_option", f"{option} = {url!r} is not an address", "write it as aim://host:port")
    remedy = f"start it with `aim server --host {parts.hostname} --port {parts.port}`"
    began = time.perf_counter()
    try:
        answer = requests.get(f"http://{address}{parts.path}/status/", timeout=timeout)
    except requests.Timeout:
        return Check("unreachable", f"{address} did not answer within {timeout:g} s", remedy, url)
    except requests.RequestException as error:
        return Check("unreachable", f"{address}: {root_cause(error)}", remedy, url)
    latency = time.perf_counter() - began
    if answer.status_code in (401, 403):
        return Check("rejected_credentials", f"{address} answered {answer.status_code}", remedy, url)
    if answer.status_code != 200:
        return Check("unreachable", f"{address} answered {answer.status_code}", remedy, url)
    return Check("ok", "aim server", server=url, latency=latency)
