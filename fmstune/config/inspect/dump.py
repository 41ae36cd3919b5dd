"""Write a resolved configuration, so that `fmstune train <run>/config.toml` repeats the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w

from fmstune.config.methods.known import DEFAULT
from fmstune.config.schema.data import handler_name, written_sources
from fmstune.config.schema.managed import OWNED_TRAINING, TRAINING_DEFAULTS
from fmstune.config.schema.tables import TABLES, RunConfig
from fmstune.config.schema.training import NONE, has_none, training_fields

HEADER = """\
The resolved configuration: defaults, file, flags and --set. To repeat the run: `fmstune train config.toml`.
The output directory is left out, so that each run gets a new one; secrets are [redacted].
"""


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested tables, without unset values and the output directory."""
    tables: dict[str, Any] = {}
    for name in ("model", "data"):
        tables[name] = dataclasses.asdict(getattr(config, name))
    for name in ("train", "eval"):
        tables["data"][name] = written_sources(getattr(config.data, name))
    tables["data"]["handler"] = handler_name(config.data.handler)
    known = training_fields(config.run.method)
    tables["training"] = {
        name: NONE if value is None and name in known and has_none(known[name]) else value
        for name, value in config.training.items()
        if name != "output_dir"
    }
    for name in ("lora", "prompt_tuning", "run", "samples", "tracking", "resources"):
        tables[name] = dataclasses.asdict(getattr(config, name))
    if config.trackers:
        tables["trackers"] = {name: dict(options) for name, options in config.trackers.items()}
    if config.params:
        tables["params"] = dict(config.params)
    without_none: dict[str, Any] = _without_none(tables)
    return without_none


def to_toml(config: RunConfig, tables: Mapping[str, Any] | None = None, *, header: str = HEADER) -> str:
    """The configuration as TOML that `load` reads back to the same values.

    `tables` replaces the result of `to_mapping`, for a caller that has redacted it. `header` is the text of
    the comment at the top.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return f"{comment}\n{tomli_w.dumps(tables if tables is not None else to_mapping(config))}"


def _without_none(value: Any) -> Any:
    """Leave out `None`, which TOML cannot express; a missing key means the same, except where there is
    `NONE`."""
    if isinstance(value, Mapping):
        return {str(k): _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value if item is not None]
    return value


@dataclass(frozen=True, slots=True)
class Option:
    """A setting, as a row of a table."""

    key: str
    type: str
    default: Any
    help: str


def option_table(method: str = DEFAULT) -> list[Option]:
    """All settings of a method, except for the trackers' own options."""
    options = []
    for table, cls in TABLES.items():
        for field in dataclasses.fields(cls):
            options.append(
                Option(f"{table}.{field.name}", str(field.type), field.default, field.metadata["help"])
            )
    for name, field_ in training_fields(method).items():
        if name not in OWNED_TRAINING:
            default = TRAINING_DEFAULTS.get(name, field_.default)
            options.append(Option(f"training.{name}", field_.annotation, default, field_.help))
    return options
