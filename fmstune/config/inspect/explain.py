"""Explain a configuration: the value of a setting, its origin, what it overrides, and what it accepts."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.config.check.annotations import annotation_of
from fmstune.config.check.words import in_words
from fmstune.config.inspect.decided import decided_by
from fmstune.config.load.layers import of_other_methods, setting_hint
from fmstune.config.load.load import known_keys
from fmstune.config.load.values import dotted, split_key
from fmstune.config.rules.unused import unused
from fmstune.config.schema.data import written_sources
from fmstune.config.schema.managed import OWNED_TRAINING, RENAMED_TRAINING, TRAINING_BOUNDS
from fmstune.config.schema.tables import TABLES, RunConfig
from fmstune.config.schema.training import NONE, has_none, training_fields
from fmstune.errors import ConfigError
from fmstune.secrets.forms import REDACTED
from fmstune.secrets.names import is_secret_name
from fmstune.text import shown, shown_key


@dataclass(frozen=True, slots=True)
class Explanation:
    """A setting: its value, the value's origin, and the overridden values as (value, origin), latest first.
    `takes` describes the accepted values. `decided` describes how a run decides the value, if it is not known
    in advance; `note` is a further remark."""

    key: str
    value: Any
    origin: str
    over: Sequence[tuple[Any, str]]
    default: Any
    takes: str
    help: str
    decided: str = ""
    note: str = ""

    def lines(self) -> Iterator[str]:
        """The explanation as lines of text."""
        if self.decided:
            yield f"{self.key} = auto, decided by the run: {self.decided}"
        else:
            yield f"{self.key} = {_value(self.value)}"
        won = "".join(f", overriding {_value(value)} from {origin}" for value, origin in self.over)
        if self.origin == "default":
            if not self.decided:
                yield "  by default"
        else:
            yield f"  from {self.origin}{won} (default: {_value(self.default)})"
        if self.note:
            yield f"  {self.note}"
        if self.help:
            yield f"  {' '.join(self.help.split())}"
        if self.takes:
            yield f"  takes {self.takes}"


def explain(config: RunConfig, key: str) -> Explanation:
    """Explain one dotted key. Raises `ConfigError` for an unknown key."""
    table, *names = split_key(key, "explain")
    name = ".".join(names)
    if table in ("trackers", "params"):
        return _explain_free(config, table, names, key)
    if table == "training" and name in OWNED_TRAINING:
        raise ConfigError(f"{key} is managed by fmstune: {OWNED_TRAINING[name]}.")
    method = config.run.method
    newer = RENAMED_TRAINING.get(name) if table == "training" else None
    if newer in training_fields(method):
        note = f"an older name of training.{newer}"
        return dataclasses.replace(explain(config, f"training.{newer}"), key=key, note=note)
    if table == "training" and name in training_fields(method):
        field = training_fields(method)[name]
        takes = _takes(field.annotation, field.choices, TRAINING_BOUNDS.get(name, {}))
        takes += f", or {shown(NONE)}" if has_none(field) else ""
        default = config.defaults.get(name, field.default)
        value = config.training.get(name, default)
        return dataclasses.replace(
            _explanation(config, key, value, default, takes, field.help),
            decided=decided_by(config, name),
            note=_idle(config, key),
        )
    for own in dataclasses.fields(TABLES[table]) if table in TABLES else ():
        if own.name == name:
            takes = _takes(annotation_of(own), own.metadata.get("choices"), own.metadata)
            value = getattr(getattr(config, table), name)
            default = own.default
            if "read" in own.metadata:  # data.train and data.eval, shown as written
                value, default, takes = written_sources(value), "", "a string, a list of strings, or tables"
            found = _explanation(config, key, value, default, takes, own.metadata["help"])
            return dataclasses.replace(found, note=_idle(config, key))
    others = of_other_methods(key, method)
    close = setting_hint(key, method)
    raise ConfigError(others or f"there is no setting {shown_key(*key.split('.'))}.{close}")


def _idle(config: RunConfig, key: str) -> str:
    why = unused(config).get(key)
    return f"has no effect in this run: {why}" if why else ""


def explain_all(config: RunConfig, key: str) -> list[Explanation]:
    """Explain a key, or all keys of a table. Raises `ConfigError`."""
    if key in ("trackers", "params"):
        return [each for each in chosen(config) if each.key.startswith(f"{key}.")]
    if key in (*TABLES, "training"):
        keys = known_keys(config.run.method)
        older = [f"training.{name}" for name, new in RENAMED_TRAINING.items() if f"training.{new}" in keys]
        return [explain(config, each) for each in keys if each.startswith(f"{key}.") and each not in older]
    return [explain(config, key)]


def chosen(config: RunConfig) -> list[Explanation]:
    """The settings that were set, in the order of the configuration."""
    keys = known_keys(config.run.method)
    found = [key for key in keys if config.origins.get(key, "default") != "default"]
    options = [("trackers", name, option) for name, table in config.trackers.items() for option in table]
    free = [dotted(parts) for parts in (*options, *(("params", name) for name in config.params))]
    return [explain(config, key) for key in [*found, *free]]


def _explanation(config: RunConfig, key: str, value: Any, default: Any, takes: str, text: str) -> Explanation:
    origin = config.origins.get(key, "default")
    default = value if origin == "default" else default
    over = [(_visible(key, value), where) for value, where in config.over.get(key, ())]
    return Explanation(key, _visible(key, value), origin, over, default, takes, text)


def _explain_free(config: RunConfig, table: str, names: Sequence[str], key: str) -> Explanation:
    """Explain a tracker's option, or a param: the keys are the tracker's or the user's own."""
    values: Any = getattr(config, table)
    for part in names:
        if not isinstance(values, Mapping) or part not in values:
            there = ", ".join(sorted(values)) if isinstance(values, Mapping) else ""
            raise ConfigError(f"{key} is not set{f'; set are {there}' if there else ''}.")
        values = values[part]
    return _explanation(config, key, values, None, "", "")


def _takes(annotation: str, choices: Sequence[str] | None, bounds: Mapping[str, Any]) -> str:
    words = {"min": "at least", "above": "more than", "max": "at most", "below": "below"}
    limits = " and ".join(f"{words[name]} {bounds[name]}" for name in words if name in bounds)
    kind = f"one of {', '.join(choices)}" if choices else in_words(annotation)
    return f"{kind}, {limits}" if limits else kind


def _visible(key: str, value: Any) -> Any:
    return REDACTED if value and not isinstance(value, bool) and is_secret_name(key) else value


def _value(value: Any) -> str:
    if value is None or value == "":
        return "nothing"
    if isinstance(value, (bool, datetime.date, datetime.time)):
        return shown(value)
    return repr(list(value) if isinstance(value, tuple) else value)  # in full, and on one line
