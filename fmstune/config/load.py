"""Loading: defaults, then the TOML file, then flags, then `--set`; later wins. Then it is all checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fmstune.config.checks import check_together
from fmstune.config.errors import ConfigError, shortened, shown_key
from fmstune.config.schema import (
    DEMO_TRAINING,
    LORA_LEARNING_RATE,
    OWNED_TRAINING,
    RENAMED_TRAINING,
    TABLES,
    TRAINING_DEFAULTS,
    RunConfig,
)
from fmstune.config.suggest import hint
from fmstune.config.training_fields import training_fields
from fmstune.config.typed import check_field, check_value
from fmstune.config.values import (
    check_storable,
    merged,
    parse_params,
    parse_sets,
    read_params_file,
    read_toml,
    split_key,
)

FILE_NAME = "fmstune.toml"
_FREE_TABLES = ("trackers", "params")

Flag = tuple[str, Any, str]
"""A dotted key, its value, and the flag it was given with."""


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    origin: str


def load(
    config_path: Path | None,
    flags: Sequence[Flag] = (),
    sets: Sequence[str] = (),
    params: Sequence[str] = (),
    params_file: Path | None = None,
    cwd: Path | None = None,
) -> RunConfig:
    """The resolved configuration of a run. Relative paths stay as they are written, relative to the
    current directory. Raises `ConfigError`, and nothing else, whatever it is given."""
    given, file = _gather(config_path, flags, sets, cwd or Path())
    own_params = _table(given, "params")
    if params_file is not None:
        own_params = merged(own_params, read_params_file(params_file))
    own_params = merged(own_params, parse_params(params))
    checked = {key: _check(key, entry) for key, entry in given.items() if not _is_free(key)}
    demo = _choose_demo(checked, file)
    training, origins = _training(checked, demo)
    tables = {name: _instance(name, checked) for name in TABLES}
    config = RunConfig(
        **tables,
        training=training,
        trackers=_trackers(given),
        params=own_params,
        origins={**origins, **{key: entry.origin for key, entry in given.items()}},
        demo=demo,
    )
    return check_together(config, file)


def load_trackers(
    config_path: Path | None, sets: Sequence[str], cwd: Path | None = None
) -> tuple[tuple[str, ...], Mapping[str, Mapping[str, Any]], Mapping[str, str]]:
    """The trackers that are configured here, the options of each, and the origins of what was set; for
    commands that run nothing."""
    given, _ = _gather(config_path, (), sets, cwd or Path())
    checked = {key: _check(key, entry) for key, entry in given.items() if key.startswith("tracking.")}
    origins = {key: entry.origin for key, entry in given.items()}
    return tuple(checked.get("tracking.trackers", ())), _trackers(given), origins


def known_keys() -> list[str]:
    """Every dotted key that can be set, but for the trackers' own options and params."""
    return [*_table_keys(), *(f"training.{name}" for name in training_fields() if name not in OWNED_TRAINING)]


def _table_keys() -> list[str]:
    return [f"{table}.{field.name}" for table, cls in TABLES.items() for field in fields(cls)]


def _gather(
    config_path: Path | None, flags: Sequence[Flag], sets: Sequence[str], cwd: Path
) -> tuple[dict[str, _Given], str | None]:
    """Everything that was given, by dotted key, and the name of the file it came from."""
    path = config_path or (cwd / FILE_NAME if (cwd / FILE_NAME).exists() else None)
    given: dict[str, _Given] = {}
    name = None
    if path is not None:
        name = shortened(str(path)) if config_path else FILE_NAME
        for table, content in read_toml(path).items():
            _take_table(given, table, content, name)
    for key, value, flag in flags:
        check_storable(value, flag)
        given[key] = _Given(value, flag)
    for key, value in parse_sets(sets):
        parts = split_key(key, "--set")
        if parts[0] in _FREE_TABLES and len(parts) > 1:
            nested: Any = value
            for part in reversed(parts[1:]):
                nested = {part: nested}
            before = given.get(parts[0], _Given({}, "--set"))
            given[parts[0]] = _Given(merged(before.value, nested), before.origin)
            given[f"{parts[0]}.{'.'.join(parts[1:])}"] = _Given(value, "--set")  # for its origin
        elif len(parts) == 2 and parts[0] in (*TABLES, "training"):
            given[".".join(parts)] = _Given(value, "--set")
        elif key in (*TABLES, "training", "params"):
            raise ConfigError(f"--set: {key} is a table; set what is in it, as in {key}.NAME=VALUE.")
        else:
            raise ConfigError(f"--set: there is no setting {shown_key(*parts)}.{hint(key, known_keys())}")
    return given, name


def _take_table(given: dict[str, _Given], table: str, content: Any, name: str) -> None:
    tables = (*TABLES, "training", *_FREE_TABLES)
    if table not in tables:
        close = difflib.get_close_matches(table, tables, n=1, cutoff=0.6)
        as_table, as_key = f" Did you mean [{close[0]}]?" if close else "", hint(table, known_keys())
        meant = (as_table or as_key) if isinstance(content, dict) else (as_key or as_table)
        there = "" if meant else f" There are {', '.join(f'[{known}]' for known in tables)}."
        raise ConfigError(f"{name}: there is no table or setting {shown_key(table)}.{meant}{there}")
    if not isinstance(content, dict):
        chosen = " Trackers are chosen with [tracking] trackers = [...]." if table == "trackers" else ""
        raise ConfigError(
            f"{name}: {table} is a table; write it as [{table}] with its settings below.{chosen}"
        )
    if table in _FREE_TABLES:
        given[table] = _Given(content, name)
    else:
        given.update({f"{table}.{key}": _Given(value, name) for key, value in content.items()})


def _check(key: str, entry: _Given) -> Any:
    table, _, name = key.partition(".")
    where = entry.origin
    if table in TABLES:
        for field in fields(TABLES[table]):
            if field.name == name:
                return check_field(entry.value, field, where=where, key=key)
    elif name in OWNED_TRAINING:
        raise ConfigError(f"{where}: training.{name} is not for you to set: {OWNED_TRAINING[name]}.")
    elif name in training_fields():
        known = training_fields()[name]
        return check_value(entry.value, known.annotation, where=where, key=key, choices=known.choices)
    raise ConfigError(f"{where}: there is no setting {shown_key(table, name)}.{hint(key, known_keys())}")


def _is_free(key: str) -> bool:
    return key.partition(".")[0] in _FREE_TABLES


def _table(given: Mapping[str, _Given], name: str) -> dict[str, Any]:
    return dict(given[name].value) if name in given else {}


def _trackers(given: Mapping[str, _Given]) -> dict[str, Mapping[str, Any]]:
    found = _table(given, "trackers")
    for name, options in found.items():
        if not isinstance(options, dict):
            key = shown_key("trackers", name)
            raise ConfigError(
                f"{given['trackers'].origin}: {key} is a table of options; write it as "
                f"[{key}]. Trackers are chosen with [tracking] trackers = [...]."
            )
    return found


def _instance(table: str, checked: Mapping[str, Any]) -> Any:
    prefix = f"{table}."
    values = {key[len(prefix) :]: value for key, value in checked.items() if key.startswith(prefix)}
    return TABLES[table](**values)


def _choose_demo(checked: dict[str, Any], file: str | None) -> bool:
    """The demo, when nobody has said what to tune; raises when somebody has said half of it."""
    model, data = checked.get("model.path", ""), checked.get("data.train", "")
    nothing_said = not model and not data and file is None
    if nothing_said:
        checked |= {"model.path": "demo", "data.train": "demo"}
        model = data = "demo"
    where = f" in {file}" if file else ""
    if not model:
        raise ConfigError(
            f"there is no model: give --model, or `path` under [model]{where}. `demo` is a tiny one."
        )
    if not data:
        raise ConfigError(
            f"there is no data: give --data, or `train` under [data]{where}. `demo` is a small set."
        )
    if data == "demo" and "data.eval" not in checked and "data.eval_fraction" not in checked:
        checked["data.eval"] = "demo"
    return nothing_said


def _training(checked: Mapping[str, Any], demo: bool) -> tuple[dict[str, Any], dict[str, str]]:
    known = training_fields()
    evaluates = checked.get("data.eval") or checked.get("data.eval_fraction")
    own = {k.partition(".")[2]: v for k, v in checked.items() if k.startswith("training.")}
    for old, new in RENAMED_TRAINING.items():
        if old in own and new in known:
            own.setdefault(new, own.pop(old))
    # An older transformers has only the older names.
    older = {new: old for old, new in RENAMED_TRAINING.items()}
    defaults = {k if k in known else older[k]: v for k, v in TRAINING_DEFAULTS.items()}
    if demo:
        defaults |= DEMO_TRAINING
        if "num_train_epochs" in own:
            del defaults["max_steps"]  # it would win over the epochs that were asked for
        if not evaluates:
            del defaults["eval_strategy"], defaults["eval_steps"]
    if checked.get("lora.enabled") and not demo:
        defaults["learning_rate"] = LORA_LEARNING_RATE
    if evaluates and not demo:
        defaults["eval_strategy"] = "epoch"
    origins = {f"training.{key}": "default" for key in defaults}
    return {**defaults, **own}, origins
