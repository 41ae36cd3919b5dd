"""Turn the command line into a checked configuration, without importing torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fmstune.config.check.suggest import closest
from fmstune.config.check.typed import read_dataclass
from fmstune.config.inspect.dump import to_mapping
from fmstune.config.load.layers import FROM_PYTHON
from fmstune.config.load.load import load, load_trackers
from fmstune.config.load.values import dotted
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.secrets.redaction import REDACTED, config_secrets, holds_redacted, know_secrets, secret_texts
from fmstune.text import shown
from fmstune.trackers.registry import (
    UnknownTracker,
    is_own,
    reference,
    tracker_class,
)

_LONGEST_NAME = 200
"""In characters, quoted; file systems take 255 for a file, including its suffixes."""


def load_config(
    config: Path | None,
    flags: Sequence[tuple[str, Any, str]],
    sets: Sequence[str],
    params: Sequence[str],
    params_file: Path | None,
    *,
    trains: bool = True,
) -> RunConfig:
    """Return the run's configuration; the trackers' names and options are checked, too. `trains` is as for
    `load`.

    Raises `ConfigError`.
    """
    given = [flag for flag in flags if flag[1] is not None or flag[2] == FROM_PYTHON]
    resolved = load(config, given, sets, params, params_file, trains=trains)
    origins = resolved.origins
    options = {name: check_options(name, table, origins) for name, table in resolved.trackers.items()}
    for name in resolved.tracking.trackers:
        check_name(name, origins.get("tracking.trackers", ""))
    twice = {name for name in resolved.tracking.trackers if resolved.tracking.trackers.count(name) > 1}
    if twice:
        raise ConfigError(f"the tracker {shown(min(twice))} is given twice; remove one.")
    resolved = dataclasses.replace(resolved, trackers=options)
    _require_whole(resolved)
    know_secrets(config_secrets(to_mapping(resolved)))  # hide them in all later output of this command
    return resolved


def _require_whole(config: RunConfig) -> None:
    """Raise `ConfigError` if a tracker's option has a redacted secret, as in the `config.toml` of a run.
    Params are not needed; `load` checks the settings."""
    for name, options in config.trackers.items():
        for key, value in options.items():
            if holds_redacted(value):
                where, how = f"trackers.{name}.{key}", "is" if value == REDACTED else "contains"
                raise ConfigError(
                    f"{where} {how} {REDACTED} in place of a secret; set it again: --set {where}=…"
                )


@dataclasses.dataclass(frozen=True)
class TrackerOptions:
    """The configured trackers, their options, and the origin of each option by dotted key: `fmstune.toml:3`,
    `--set`."""

    configured: tuple[str, ...]
    tables: Mapping[str, Mapping[str, Any]]
    origins: Mapping[str, str]

    def of(self, name: str) -> Mapping[str, Any]:
        """The options of one tracker."""
        return self.tables.get(name, {})

    def given(self, name: str) -> dict[str, str]:
        """The origin of each given option of one tracker."""
        return {key: self.origins.get(dotted(["trackers", name, key]), "") for key in self.of(name)}


def tracker_options(config: Path | None, sets: Sequence[str]) -> TrackerOptions:
    """The settings of trackers in fmstune.toml (or `config`) and `--set`. Raises `ConfigError`."""
    chosen, tables, origins = load_trackers(config, sets)
    checked = {name: check_options(name, table, origins) for name, table in tables.items()}
    know_secrets(secret_texts(checked))
    names = [name for name in (*chosen, *tables) if name != "none"]
    return TrackerOptions(tuple(dict.fromkeys(names)), checked, origins)


def check_name(name: str, where: str = "") -> None:
    """Raise `ConfigError` if there is no tracker `name`, or if it is too long for the file in which a run
    records its deliveries; `where` it was given starts the message."""
    if len(quote(name, safe="")) > _LONGEST_NAME:
        raise ConfigError(
            f"{where}{': ' * bool(where)}the name of the tracker {shown(name)} is too long. Name it as "
            "module:Class, with its module in the current directory or on Python's path."
        )
    try:
        reference(name)
    except UnknownTracker as error:
        close = closest(name, error.known)
        hint = f"Did you mean {close}?" if close else f"Available: {', '.join(error.known)}."
        if "," in name:
            hint = "Give several trackers as a list, or with several --tracker."
        raise ConfigError(f"{where}{': ' * bool(where)}there is no tracker {shown(name)}. {hint}") from None


def check_options(name: str, options: Mapping[str, Any], origins: Mapping[str, str]) -> Mapping[str, Any]:
    """Check the options' types, for fmstune's own trackers, which declare them; third-party trackers would
    have to be imported here."""
    place = origins.get(dotted(["trackers", name]), "")
    check_name(name, place)
    if not is_own(name):
        return options
    declared = tracker_class(name).Config
    if declared is None:
        if options:
            raise ConfigError(f"{place}: the tracker {name} has no options; leave out [trackers.{name}].")
        return options
    for key, value in options.items():
        where = origins.get(dotted(["trackers", name, key]), place)
        read_dataclass(declared, {key: value}, where=where, prefix=f"trackers.{name}")
    return options
