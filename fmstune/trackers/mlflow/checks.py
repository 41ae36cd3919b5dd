"""Whether a run could be tracked now in an MLflow store, and where to view it.

Everything here only reads. The SDK's behaviour was observed with mlflow-skinny 3.17.2.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fmstune.system.files import created_aside
from fmstune.system.locks import folder_locked
from fmstune.trackers.mlflow.labels import read_mark
from fmstune.trackers.network import root_cause
from fmstune.trackers.records import Check, RunStart
from fmstune.trackers.unusable import file_obstacle, folder_obstacle, will_be_created

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_ENDPOINT = "/api/2.0/mlflow/experiments/get-by-name"
_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_DATABRICKS = "run `databricks auth login`, or set DATABRICKS_HOST and DATABRICKS_TOKEN"
_SERVICES = ("databricks", "databricks-uc", "uc")
"""Addresses that MLflow knows without a scheme."""
_REMEDY = "check the network, the proxy and the tracking URI"


def local_path(uri: str) -> Path | None:
    """The file or folder of a store on this machine; `None` for one behind a server."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        # As in SQLAlchemy: three slashes and a relative path, four and an absolute one.
        return Path(unquote(parts.path[1:])) if parts.path.strip("/") else None
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme and uri not in _SERVICES else None


def client_of(given: str | None) -> MlflowClient:
    """A client of the store at a tracking URI, or of MLflow's default. Only one process at a time creates a
    new local store: two at once fail in the middle of creating the same tables. A database is created aside:
    one that was left in the middle cannot be used."""
    from mlflow.tracking import MlflowClient, get_tracking_uri

    uri = given or get_tracking_uri()
    path = local_path(uri)
    folder = path.absolute().parent if path is not None else None
    if path is None or folder is None or not folder.is_dir():
        return MlflowClient(tracking_uri=given)
    with folder_locked(folder):
        if urlsplit(uri).scheme == "sqlite" and not path.exists():
            with created_aside(path.absolute()) as new:
                encoded = str(new).replace("%", "%25").replace("?", "%3F")
                MlflowClient(tracking_uri=f"sqlite:///{encoded}").search_experiments(max_results=1)
        return MlflowClient(tracking_uri=given)


def page_of(uri: str, experiment: str, run: str) -> tuple[str | None, str | None]:
    """The page of a run, or the command that shows it when no server does."""
    if uri.startswith(("http://", "https://")):
        parts = urlsplit(uri)
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
        return f"{address.rstrip('/')}/#/experiments/{experiment}/runs/{run}", None
    return None, f"`mlflow ui --backend-store-uri {uri}` shows it" if local_path(uri) else None


def check_store(given: str | None, experiment: str | None, timeout: float, name: str) -> Check:
    """Check the store at a tracking URI, or MLflow's default."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import get_tracking_uri

    uri = given or get_tracking_uri()
    option = f"choose another: --set trackers.{name}.tracking_uri=URI"
    path = local_path(uri)
    if path is not None:
        return _check_path(path, option, is_file=urlsplit(uri).scheme == "sqlite")
    if uri.startswith("databricks") and experiment is None and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
        detail = "Databricks has no default experiment"
        remedy = f"name one: --set trackers.{name}.experiment=/Users/YOU/NAME"
        return Check("bad_option", detail, remedy, server=uri)
    try:
        creds = _credentials(uri)
    except MlflowException as error:
        if uri.startswith("databricks"):
            return Check("no_credentials", _first(error), _DATABRICKS, server=uri)
        return Check("bad_option", f"tracking_uri: {_first(error)}", option)
    if creds is None:  # a database behind a network; only a run opens it
        return Check("ok", "a database, which only a run can reach", server=_address(uri))
    return _ask(uri, creds, experiment, timeout)


def found_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run of this id, which may be a deleted one; `None` if there is none. Raises MLflow's other
    errors."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def has_run(tracking_uri: str | None, start: RunStart, last: int) -> bool | None:
    """Whether a store holds a run that is not deleted, with the event `last`; `None` if that is unknown."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    path = local_path(client.tracking_uri)
    if path is not None and not path.exists():  # a query would create it
        return False
    try:
        run = found_run(client, str(start.tracker_run_id))
    except MlflowException:
        return None
    if run is None:
        return False
    found = read_mark(run)
    complete = found.get("run_id") != start.run_id or found.get("last_event", 0) >= last
    return bool(run.info.lifecycle_stage == "active" and complete)


def _credentials(uri: str) -> Any:
    """The host and credentials that MLflow would send its requests with; `None` if it sends none. Raises
    `MlflowException` for an unsupported address, and for Databricks without credentials."""
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.tracking._tracking_service.utils import _get_store

    if urlsplit(uri).scheme.partition("+")[0] in ("postgresql", "mysql", "mssql"):
        return None
    store = _get_store(uri)
    return store.get_host_creds() if isinstance(store, RestStore) else None


def _ask(uri: str, creds: Any, experiment: str | None, timeout: float) -> Check:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.rest_utils import http_request

    server = _address(str(creds.host))
    began = time.perf_counter()
    try:
        answer = http_request(
            creds, _ENDPOINT, "GET", params={"experiment_name": experiment or "Default"},
            max_retries=0, timeout=timeout / 2, raise_on_status=False,
            retry_timeout_seconds=max(1, int(timeout)),
        )  # fmt: skip
    except MlflowException as error:
        return Check("unreachable", f"{server}: {root_cause(error)}", _REMEDY, server)
    latency, code = time.perf_counter() - began, answer.status_code
    login = _DATABRICKS if uri.startswith("databricks") else _LOGIN
    if code == 401:
        given = bool(creds.username or creds.token or uri.startswith("databricks"))
        detail = f"{server} rejects the credentials (401)" if given else f"{server} wants credentials (401)"
        return Check("rejected_credentials" if given else "no_credentials", detail, login, server)
    if code == 403:
        which = f"the experiment {experiment}" if experiment else "experiments there"
        remedy = "choose another experiment, or ask its owner for write access"
        return Check("no_permission", f"{server} does not allow {which} (403)", remedy, server)
    if code == 429 or code >= 500:
        return Check("unreachable", f"{server} answers {code}", "try again later", server)
    try:
        said = answer.json()
        known = isinstance(said, dict) and bool(said.keys() & {"experiment", "error_code"})
    except ValueError:
        known = False
    if not known:
        detail = f"{server} answers ({code}), but not as an MLflow server does"
        return Check("bad_option", detail, "correct the tracking URI", server)
    found = said.get("experiment", {})
    if found.get("lifecycle_stage", "active") != "active":
        detail = f"the experiment {experiment} is deleted"
        return Check("bad_option", detail, "restore it, or choose another", server)
    will_be = "" if found or experiment is None else f", the experiment {experiment} will be created"
    return Check(
        "ok", f"MLflow server{will_be}", server=server, latency=latency, account=creds.username or ""
    )


def _check_path(path: Path, option: str, *, is_file: bool) -> Check:
    from mlflow import environment_variables

    place = path.expanduser().absolute()
    obstacle = file_obstacle(place) or folder_obstacle(place.parent) if is_file else folder_obstacle(place)
    if obstacle is not None:
        return Check(*obstacle, option)
    allowed = getattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE", None)  # newer versions have it
    if not is_file and allowed is not None and not allowed.get():
        return Check(
            "bad_option",
            f"{place} is a folder, and this version of MLflow writes to databases only",
            f"{option}, as sqlite:///mlflow.db, or set MLFLOW_ALLOW_FILE_STORE=true",
            server=str(place),
        )
    return Check("ok", f"a store on this machine{will_be_created(place)}", server=str(place))


def _address(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _first(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
