"""Configurations of other tools: what their settings are called here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from fmstune.config.check.elsewhere import advice_about
from fmstune.config.check.suggest import ALIASES, closest
from fmstune.config.schema.data import DataSource
from fmstune.config.schema.managed import OWNED_TRAINING
from fmstune.text import shortened

SUFFIXES = (".yaml", ".yml", ".json")
"""Suffixes of configurations in formats that fmstune does not read."""

_COMPONENT = "_component_"
"""torchtune's name for the class or function of a table."""
_OF_SOURCES = {field.name: field.name for field in fields(DataSource)} | {
    "name": "subset",
    "field": "columns",
}
_DEEPEST = 3


def advice(key: str, known: Sequence[str]) -> str | None:
    """What to use here instead of another tool's setting, if it is not just called otherwise: a sentence."""
    name = _last(key)
    found = advice_about(name)
    if found is None and name in OWNED_TRAINING and name not in ALIASES and name not in map(_last, known):
        return f"It is managed by fmstune: {OWNED_TRAINING[name]}."
    return found


def settings_of(text: str, known: Sequence[str]) -> list[str]:
    """The settings of a YAML or JSON file, as dotted keys, without empty ones. Empty if it cannot be read."""
    import yaml  # comes with huggingface_hub; only for errors

    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    return list(dict.fromkeys(_keys(found, known))) if isinstance(found, Mapping) else []


def _keys(value: Mapping[Any, Any], known: Sequence[str], above: str = "", depth: int = 0) -> Iterator[str]:
    whole = {_last(key) for key in known} - {"train", "eval"}
    for name, inner in value.items():
        key = f"{above}{name}"
        items = inner if isinstance(inner, list) else [inner]
        tables = [each for each in items if isinstance(each, Mapping)]
        if tables and depth < _DEEPEST and str(name) not in whole and advice(key, known) is None:
            for each in tables:
                yield from _keys(each, known, f"{key}.", depth + 1)
        elif inner not in (None, "", [], {}):
            yield key


def counterparts(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """A line for each of these settings, with what it is called here, or what to do instead."""
    width = max(len(shortened(name)) for name in names)
    return [f"{shortened(name):{width}}  {_counterpart(name, known)}" for name in names]


def _counterpart(key: str, known: Sequence[str]) -> str:
    above, _, name = key.rpartition(".")
    table = ALIASES.get(_last(above))
    if name == _COMPONENT and (what := advice(above, known) or table):
        return what
    if table in ("data.train", "data.eval") and name in _OF_SOURCES:
        return table if name in ("path", "source") else f"{_OF_SOURCES[name]} in a table [[{table}]]"
    return advice(key, known) or closest(key, known) or "there is no such setting"


def _last(key: str) -> str:
    return key.rpartition(".")[2].strip("\"'").lower().replace("-", "_")
