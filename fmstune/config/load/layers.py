"""Merge the file, the flags and `--set`: each key with the winning value and its origin."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fmstune.config.check.annotations import annotation_of, options_of
from fmstune.config.check.suggest import hint
from fmstune.config.load import foreign
from fmstune.config.load.toml_files import key_lines, parse_toml, read_text
from fmstune.config.load.values import check_storable, dotted, merged, parse_sets, split_key
from fmstune.config.methods.known import DEFAULT, METHODS
from fmstune.config.schema.managed import OWNED_TRAINING, RENAMED_TRAINING
from fmstune.config.schema.tables import TABLES
from fmstune.config.schema.training import methods_with, training_fields
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_FILE
from fmstune.text import in_series, shortened, shown_key, shown_path

FREE_TABLES = ("trackers", "params")
"""Tables with free keys: trackers declare their options, params are the user's own."""

_CHOSEN = " Choose trackers with --tracker, or [tracking] trackers."
_OF_NAMES = ("columns", "lr_multipliers")
"""Settings that are tables of names, besides those called `…_kwargs`."""
_EXAMPLES = {
    "model": "path",
    "data": "train",
    "run": "method",
    "lora": "enabled",
    "prompt_tuning": "enabled",
    "samples": "prompts",
    "training": "learning_rate",
}
"""For messages: the setting that is probably meant if a table is set to a value."""

_FEW = 3
"""The unknown settings in a file above which it is probably another tool's."""

Flag = tuple[str, Any, str]
"""A dotted key, its value, and the flag it was given with."""

FROM_PYTHON = "fmstune.train"
"""In place of a flag, for settings from Python, where `None` can be a value."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value as written, and its origin."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Sources:
    """The given values: `given` by dotted key, the free tables, and the configuration file, if there is one.

    `origins` has the origins of the keys of the free tables; `over`, for each key that was given several
    times, the overridden values, latest first.
    """

    given: dict[str, Given] = field(default_factory=dict)
    trackers: dict[str, dict[str, Any]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    over: dict[str, list[Given]] = field(default_factory=dict)
    file: str | None = None


def gather(
    config_path: Path | None,
    flags: Sequence[Flag],
    sets: Sequence[str],
    cwd: Path,
    without: Collection[str] = (),
) -> Sources:
    """Gather all given values, `without` those of some keys in the file; later ones win. Values are not
    checked yet. Raises `ConfigError`."""
    path = config_path or (cwd / CONFIG_FILE if os.path.lexists(cwd / CONFIG_FILE) else None)
    sources = Sources(file=(shown_path(path) if config_path else CONFIG_FILE) if path else None)
    if path is not None and sources.file is not None:
        _add_file(sources, read_text(path), sources.file)
    for key in without:
        sources.given.pop(key, None)
    for key, value, flag in flags:
        _add(sources, split_key(key, flag), value, flag)
    for parts, value in parse_sets(sets):
        _add(sources, parts, value, "--set")
    return sources


def table_keys() -> list[str]:
    """The dotted keys of fmstune's own tables, except `[training]`."""
    return [f"{table}.{field.name}" for table, cls in TABLES.items() for field in fields(cls)]


def known_keys(method: str = DEFAULT) -> list[str]:
    """All dotted keys that can be set for a method, except for trackers' options and params."""
    fields_ = (name for name in training_fields(method) if name not in OWNED_TRAINING)
    return [*table_keys(), *(f"training.{name}" for name in fields_)]


def keys_of_all_methods() -> list[str]:
    """All dotted keys that can be set for some method."""
    return list(dict.fromkeys(key for method in METHODS for key in known_keys(method)))


def can_be_unset(key: str) -> bool:
    """Whether a setting has a meaning without a value."""
    table, _, name = key.partition(".")
    known = {field.name: annotation_of(field) for field in fields(TABLES[table])} if table in TABLES else {}
    if table == "training":
        known = {each: one.annotation for method in METHODS for each, one in training_fields(method).items()}
    return "None" in options_of(known.get(name, ""))


def keeps_value(key: str) -> bool:
    """Whether `None` leaves this setting as it is, as it has no meaning without a value."""
    table, _, name = key.partition(".")
    whole = table in FREE_TABLES or key in (*TABLES, "training")
    return (whole or name in RENAMED_TRAINING or key in keys_of_all_methods()) and not can_be_unset(key)


def setting_hint(key: str, method: str = DEFAULT) -> str:
    """What an unknown key probably means, or what to use in its place: a sentence after a space, or an empty
    string."""
    known = known_keys(method)
    advice = foreign.advice(key, known)
    return f" {advice}" if advice else hint(key, known) or hint(key, keys_of_all_methods())


def of_other_methods(key: str, method: str) -> str | None:
    """A message that a key is a setting of other methods, or `None` if it is not."""
    table, _, name = key.partition(".")
    others = methods_with(name) if table == "training" and name not in OWNED_TRAINING else []
    if not others or method in others:
        return None
    return f"{key} is a setting of {in_series(others)}; this run's method is {method} (--method)."


def _add_file(sources: Sources, text: str, name: str) -> None:
    lines = key_lines(text)

    def place(*parts: str) -> str:
        return f"{name}:{lines[parts]}" if parts in lines else name

    if name.lower().endswith(foreign.SUFFIXES):
        _refuse_other_format(text, name)
    found = parse_toml(text, name)
    unknown = [table for table in found if table not in _tables()]
    if len(unknown) > _FEW:
        raise ConfigError(
            f"{place(unknown[0])}: there are no such tables or settings. What they are in fmstune:",
            foreign.counterparts(unknown, keys_of_all_methods()),
        )
    for table, content in found.items():
        if table not in _tables():
            close = difflib.get_close_matches(table, _tables(), n=1, cutoff=0.6)
            as_table, as_key = f" Did you mean [{close[0]}]?" if close else "", setting_hint(table)
            is_table = isinstance(content, dict) and foreign.advice(table, known_keys()) is None
            meant = (as_table or as_key) if is_table else (as_key or as_table)
            there = "" if meant else f" Available: {', '.join(f'[{each}]' for each in _tables())}."
            raise ConfigError(
                f"{place(table)}: there is no table or setting {shown_key(table)}.{meant}{there}"
            )
        if not isinstance(content, dict):
            raise ConfigError(
                f"{place(table)}: {table} is a table; write it as [{table}] with its settings below."
                f"{_CHOSEN * (table == 'trackers')}"
            )
        for key, value in content.items():
            if table == "trackers" and isinstance(value, dict):
                _add(sources, [table, key], {}, place(table, key))
                for option, its_value in value.items():
                    _add(sources, [table, key, option], its_value, place(table, key, option))
            else:
                _add(sources, [table, key], value, place(table, key))


def _refuse_other_format(text: str, name: str) -> None:
    known = keys_of_all_methods()
    if theirs := foreign.settings_of(text, known):
        raise ConfigError(
            f"{name}: fmstune reads TOML; translate this file with `fmstune init --from {name}`. What its "
            "settings are in fmstune:",
            foreign.counterparts(theirs, known),
        )


def _add(sources: Sources, parts: Sequence[str], value: Any, origin: str) -> None:
    table, *rest = parts
    key = dotted(parts)
    if table in FREE_TABLES and rest and key in sources.origins:
        there = _get(sources.params if table == "params" else sources.trackers, rest)
        if not isinstance(there, Mapping):
            sources.over.setdefault(key, []).insert(0, Given(there, sources.origins[key]))
    if table == "params" and rest:
        _insert(sources.params, rest, value, origin)
        sources.origins[key] = origin
    elif table == "trackers" and rest:
        if len(rest) == 1 and not isinstance(value, Mapping):
            name = shortened(key)
            how = f"set one, as in {name}.NAME=VALUE" if origin == "--set" else f"write it as [{name}]"
            raise ConfigError(f"{origin}: {name} is a table of options; {how}.{_CHOSEN}")
        _insert(sources.trackers, rest, value, origin)
        sources.origins[key] = origin
        sources.origins.setdefault(dotted([table, rest[0]]), origin)
    elif len(parts) == 2 and table in _tables():
        check_storable(value, origin)
        if key in sources.given:
            sources.over.setdefault(key, []).insert(0, sources.given[key])
        sources.given[key] = Given(value, origin)
    elif len(parts) == 3 and (rest[0] in _OF_NAMES or rest[0].endswith("_kwargs")):
        check_storable(value, origin)
        key = dotted(parts[:2])
        given = sources.given[key].value if key in sources.given else {}
        sources.given[key] = Given({**(given if isinstance(given, Mapping) else {}), rest[1]: value}, origin)
    elif len(parts) == 1 and table in _tables():
        chosen = _CHOSEN * (table == "trackers")
        one = f"{table}.{_EXAMPLES.get(table, 'NAME')}"
        raise ConfigError(
            f"{origin}: {table} is a table; set one of its settings, as in {one}=VALUE.{chosen}"
        )
    else:
        raise ConfigError(f"{origin}: there is no setting {shortened(key)}.{setting_hint(key)}")


def _get(table: Mapping[str, Any], parts: Sequence[str]) -> Any:
    """The value of a key in nested tables, or `None`."""
    found: Any = table
    for part in parts:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _insert(table: dict[str, Any], parts: Sequence[str], value: Any, origin: str) -> None:
    nested = value
    for part in reversed(parts):
        nested = {part: nested}
    check_storable(nested, origin)
    table.update(merged(table, nested))


def _tables() -> tuple[str, ...]:
    return (*TABLES, "training", *FREE_TABLES)
