"""The options of the tracker `comet`, and their defaults from Comet's own settings: environment variables,
`.env` and `.comet.config` here, `~/.comet.config`.

Everything here only reads. The SDK's behaviour was observed with comet_ml 3.58.8.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fmstune.secrets.redaction import hide
from fmstune.trackers.unusable import Unusable

Mode = Literal["online", "offline", "disabled"]
MODES: tuple[Mode, ...] = ("online", "offline", "disabled")
_PROJECT = "fmstune"
LOGIN = "run `comet login`, or set COMET_API_KEY"


@dataclass(frozen=True)
class CometOptions:
    """Options of the tracker `comet`. Comet's own settings decide those that are not set."""

    mode: str | None = field(
        default=None,
        metadata={
            "help": "online, offline or disabled; else COMET_START_ONLINE, COMET_AUTO_LOG_DISABLE or "
            "COMET_MODE, else online."
        },
    )
    project: str | None = field(
        default=None, metadata={"help": 'The project; else COMET_PROJECT_NAME, else "fmstune".'}
    )
    workspace: str | None = field(
        default=None, metadata={"help": "The workspace; else COMET_WORKSPACE, else your default one."}
    )
    experiment_name: str | None = field(
        default=None,
        metadata={
            "help": "The experiment's name; else COMET_START_EXPERIMENT_NAME or COMET_EXPERIMENT_NAME, "
            "else the run's own."
        },
    )
    tags: tuple[str, ...] = field(
        default=(), metadata={"help": "Tags; else COMET_START_EXPERIMENT_TAGS, else run.tags."}
    )
    dir: str | None = field(
        default=None,
        metadata={
            "help": "Where to store archives of offline experiments; else COMET_OFFLINE_DIRECTORY, else "
            ".cometml-runs here."
        },
    )


class CometUnusable(Unusable):
    """What makes Comet unusable."""

    vendor = "Comet"
    another_folder = f"{Unusable.another_folder}, or COMET_OFFLINE_DIRECTORY"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings for Comet. `server` is the address of its client library's API, `config` the SDK's own
    configuration, `experiment` the key of the experiment that the environment selects."""

    mode: Mode
    project: str
    workspace: str | None
    name: str | None
    tags: tuple[str, ...]
    folder: Path
    server: str
    experiment: str | None
    config: Any

    @property
    def shown_server(self) -> str:
        """The server's address without path, user name and password."""
        parts = urlsplit(self.server)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def found_settings(options: CometOptions) -> Settings:
    """The settings that Comet would use now. Raises `CometUnusable`."""
    from comet_ml.config import get_backend_address, get_config

    if options.mode is not None and options.mode not in MODES:
        raise CometUnusable("bad_option", f"mode is {options.mode!r}", f"use {', '.join(MODES)}")
    config = get_config()

    def setting(name: str) -> Any:
        try:
            return config[name]
        except Exception:  # everett raises its own errors for a value that it cannot parse
            variable = name.replace(".", "_").upper()
            given = os.environ.get(variable)
            said = "in Comet's settings" if given is None else f"is {hide(given[:80])!r}, which"
            raise CometUnusable(
                "bad_option", f"{variable} {said} cannot be read", f"correct or unset {variable}"
            ) from None

    api_key(config)  # a key that contains a server determines the address
    server = get_backend_address(config)
    if urlsplit(server).scheme not in ("http", "https"):
        detail = f"COMET_URL_OVERRIDE is {hide(server)!r}, which is not an address"
        raise CometUnusable("bad_option", detail, "write https://HOST/clientlib/")
    key = setting("comet.experiment_key")
    if key is not None and not (key.isalnum() and 32 <= len(key) <= 50):
        detail = f"COMET_EXPERIMENT_KEY is {hide(str(key)[:80])!r}, which is not 32 to 50 letters and digits"
        raise CometUnusable("bad_option", detail, "correct or unset it")
    folder = options.dir or setting("comet.offline_directory")
    return Settings(
        mode=_mode(options, setting),
        project=options.project or setting("comet.project_name") or _PROJECT,
        workspace=options.workspace or setting("comet.workspace"),
        name=options.experiment_name
        or (setting("comet.start.experiment_name") or setting("comet.experiment_name")),
        tags=options.tags or tuple(setting("comet.start.experiment_tags") or ()),
        folder=Path(folder).expanduser().absolute(),
        server=server,
        experiment=key,
        config=config,
    )


def _mode(options: CometOptions, setting: Any) -> Mode:
    for mode in MODES:
        if options.mode == mode:
            return mode
    if setting("comet.auto_log.disable"):
        return "disabled"
    # From transformers' integration: which experiment is opened, or a value that turns Comet off.
    named = os.environ.get("COMET_MODE", "").strip().lower()
    if named not in ("", "get", "get_or_create", "create"):
        for mode in MODES:
            if named == mode:
                return mode
        said = f"COMET_MODE is {hide(named[:80])!r}"
        raise CometUnusable("bad_option", said, f"use {', '.join(MODES)}, or unset COMET_MODE")
    return "offline" if setting("comet.start.online") is False else "online"


def api_key(config: Any) -> str | None:
    """The API key that Comet would use, never shown; `None` if there is none."""
    from comet_ml.config import get_api_key

    key = get_api_key(None, config)
    return str(key) if key else None


def disabled() -> str:
    by = next(
        (f" by {name}" for name in ("COMET_AUTO_LOG_DISABLE", "COMET_MODE") if os.environ.get(name)), ""
    )
    return f"disabled{by}: nothing is sent to Comet and nothing is kept for it"
