"""Resolve names on the hub to commits, before anything heavy is loaded.

A wrong name, a missing permission or an unreachable hub then costs a second instead of the minutes that
torch, the data and a large model take to load. All processes and a resumed run read the same version, and the
run's configuration records which one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from fmstune.config.inspect.compare import read_tables
from fmstune.config.paths.hub import may_be_on_the_hub
from fmstune.config.paths.models import ADAPTER_CONFIG, split_gguf
from fmstune.config.schema.data import DataSource
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError, DataError, ModelError
from fmstune.launch.environment import quiet_libraries
from fmstune.layout import CONFIG_NAME
from fmstune.text import first_line
from fmstune.transformers_compat import use_only_caches

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SECONDS = 10.0
"""The timeout of a request to the hub; there is no retry."""

_Kind = Literal["model", "dataset"]
_Key = tuple[_Kind, str, str | None]
"""A repository's kind and name, and the requested revision."""


@dataclass(frozen=True, slots=True)
class _Named:
    """A repository named by the configuration, in the setting `key`."""

    kind: _Kind
    key: str
    name: str
    revision: str | None

    def error(self, what: str) -> ModelError | DataError:
        message = f"{self.key} = {self.name!r}: {what}"
        return ModelError(message) if self.kind == "model" else DataError(message)


class _Unreachable(Exception):
    """The hub does not answer."""


def stay_offline_without_network(config: RunConfig) -> str | None:
    """If the hub's host name cannot be resolved, restrict the hub's client to its cache, and return a
    warning: it would try five times, for most of a minute, for each file. Call it before the client is
    imported, which is when the client reads the setting."""
    if not any(_named(config)) or "HF_HUB_OFFLINE" in os.environ:
        return None
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None  # the proxy resolves names
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return f"{host} cannot be resolved: using only the local cache of the hub"
    return None


def pinned(config: RunConfig, warn: Callable[[str], None], resumed: Path | None = None) -> RunConfig:
    """Return the configuration with the commit of each hub repository that it names.

    The commits that the run in the directory `resumed` started with are kept. If the hub cannot be reached,
    only its cache is used from here on, and `warn` gets a message. Raises `ModelError` or `DataError` for a
    repository that does not exist or that the account may not read.
    """
    config = _as_begun(config, resumed) if resumed is not None else config
    if not any(_named(config)):
        return config
    quiet_libraries()
    if "HF_HUB_OFFLINE" in os.environ:
        _require_cached_model(config, "HF_HUB_OFFLINE is set")
        return config
    offline = stay_offline_without_network(config)
    if offline is not None:
        warn(offline)
        _require_cached_model(config, "its address cannot be resolved")
        return config
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    commits: dict[_Key, str] = {}
    try:
        for each in _named(config):
            commits[each.kind, each.name, each.revision] = _commit(api, each)
    except _Unreachable as away:
        _require_cached_model(config, str(away))
        use_only_caches()
        warn(f"the hub cannot be reached ({away}): using only its local cache")
        return config
    return _with_commits(config, commits)


def _named(config: RunConfig) -> Iterator[_Named]:
    path, _ = split_gguf(config.model.path, config.model.gguf_file)
    if may_be_on_the_hub(path, one_word=True):
        yield _Named("model", "model.path", path, config.model.revision)
    for key, sources in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        for source in sources:
            if may_be_on_the_hub(source.path):
                yield _Named("dataset", key, source.path, source.revision)


def _commit(api: HfApi, named: _Named) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    ask: Any = api.model_info if named.kind == "model" else api.dataset_info
    try:
        info = ask(named.name, revision=named.revision, timeout=_SECONDS)
        if info.gated:
            api.auth_check(named.name, repo_type=named.kind)
    except GatedRepoError:
        page = f"{api.endpoint}/{'datasets/' if named.kind == 'dataset' else ''}{named.name}"
        raise named.error(
            f"this repository is gated. Accept its terms at {page}, then log in with `hf auth login` or set "
            "HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        what = "model" if named.kind == "model" else "data set"
        raise named.error(
            f"no such local path, and no such {what} on the hub that this account can access. Check the name "
            "(owner/name); a private one needs `hf auth login` or HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise named.error(f"no branch, tag or commit {named.revision!r} on the hub.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise named.error(
                f"the hub rejects the token ({status}). Log in again with `hf auth login`, or set another "
                "HF_TOKEN."
            ) from None
        limited = "rate limit exceeded, "
        raise _Unreachable(f"{limited if status == 429 else ''}status {status}") from None
    except ValueError as error:  # not a valid name on the hub
        raise named.error(next(iter(str(error).splitlines()), "not a valid name on the hub")) from None
    except Exception as error:  # errors of its HTTP client, which differs between versions
        raise _Unreachable(first_line(error)) from None
    files = {entry.rfilename for entry in info.siblings or ()}
    if named.kind == "model" and ADAPTER_CONFIG in files and "config.json" not in files:
        raise named.error(
            "it is an adapter. Download it, and pass the directory: "
            f"hf download {named.name} --local-dir {named.name.rpartition('/')[2]}"
        )
    return str(info.sha)


def _require_cached_model(config: RunConfig, away: str) -> None:
    """Raise `ModelError` for a model that is not in the cache: now rather than after torch is imported."""
    from huggingface_hub import try_to_load_from_cache

    for each in _named(config):
        if each.kind == "model":
            file = split_gguf(config.model.path, config.model.gguf_file)[1] or "config.json"
            if not isinstance(try_to_load_from_cache(each.name, file, revision=each.revision), str):
                raise each.error(
                    "it is neither a local path nor in the hub's cache, and the hub cannot be reached "
                    f"({away}). Try again later, or use a local directory."
                )


def _with_commits(config: RunConfig, commits: Mapping[_Key, str]) -> RunConfig:
    path, _ = split_gguf(config.model.path, config.model.gguf_file)
    model = config.model
    commit = commits.get(("model", path, model.revision))
    if commit is not None:
        model = replace(model, revision=commit)

    def of(source: DataSource) -> DataSource:
        commit = commits.get(("dataset", source.path, source.revision))
        return source if commit is None else replace(source, revision=commit)

    data = replace(
        config.data, train=tuple(map(of, config.data.train)), eval=tuple(map(of, config.data.eval))
    )
    return replace(config, model=model, data=data)


def _as_begun(config: RunConfig, directory: Path) -> RunConfig:
    """Return the configuration with the commits that a run started with, for unchanged names without a
    revision."""
    try:
        tables = read_tables(directory, CONFIG_NAME)
    except ConfigError:
        return config
    begun: dict[_Key, str] = {}
    model = tables.get("model", {})
    if isinstance(model.get("revision"), str):
        path, _ = split_gguf(str(model.get("path")), model.get("gguf_file"))
        begun["model", path, None] = model["revision"]
    for key in ("train", "eval"):
        sources = tables.get("data", {}).get(key)
        for source in sources if isinstance(sources, list) else ():
            if isinstance(source, dict) and isinstance(source.get("revision"), str):
                begun["dataset", str(source.get("path")), None] = source["revision"]
    return _with_commits(config, begun)
