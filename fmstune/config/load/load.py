"""Load and check the configuration: defaults, the TOML file, flags, then `--set`; later values win."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from fmstune.access import unusable_path
from fmstune.config.check.typed import check_bounds, check_field, check_value
from fmstune.config.load.layers import (
    Flag,
    Given,
    Sources,
    gather,
    known_keys,
    of_other_methods,
    setting_hint,
    table_keys,
)
from fmstune.config.load.values import dotted, merged, parse_params, read_params_file
from fmstune.config.methods.known import DEFAULT, METHODS
from fmstune.config.paths.models import with_adapter
from fmstune.config.rules.evaluation import check_consistency
from fmstune.config.schema.managed import OWNED_TRAINING, RENAMED_TRAINING, TRAINING_BOUNDS, TRAINING_DEFAULTS
from fmstune.config.schema.tables import (
    DEMO,
    DEMO_TRAINING,
    PROMPT_TUNING_LEARNING_RATE,
    TABLES,
    DataSource,
    RunConfig,
)
from fmstune.config.schema.training import NONE, has_none, methods_with, training_fields
from fmstune.errors import ConfigError, combined
from fmstune.layout import CONFIG_FILE
from fmstune.secrets.forms import REDACTED, holds_redacted
from fmstune.text import shortened, shown_path

__all__ = ["CONFIG_FILE", "Flag", "known_keys", "load", "load_trackers"]

T = TypeVar("T")


def load(
    config_path: Path | None,
    flags: Sequence[Flag] = (),
    sets: Sequence[str] = (),
    params: Sequence[str] = (),
    params_file: Path | None = None,
    cwd: Path | None = None,
    *,
    trains: bool = True,
    without: Collection[str] = (),
) -> RunConfig:
    """Return the resolved configuration of a run. Raises only `ConfigError`, whatever the input. Without
    `trains`, variables of the environment that a training would refuse do not matter. The keys `without` are
    not read from the file.

    Relative paths stay as written, so that messages, trackers and `config.toml` show them unchanged. They are
    relative to the current directory (`cwd`), also in a file elsewhere.
    """
    try:
        return _loaded(
            config_path, flags, sets, params, params_file, cwd or Path(), trains=trains, without=without
        )
    except OSError as error:
        if (message := unusable_path(error)) is None:
            raise
        raise ConfigError(message) from error


def _loaded(
    config_path: Path | None,
    flags: Sequence[Flag],
    sets: Sequence[str],
    params: Sequence[str],
    params_file: Path | None,
    cwd: Path,
    *,
    trains: bool,
    without: Collection[str],
) -> RunConfig:
    sources = gather(config_path, flags, sets, cwd, without)
    checked = _with_renamed_keys(_check_all(sources.given))
    _choose_demo(checked, sources.file)
    of_adapter = with_adapter(checked, {key: given.origin for key, given in sources.given.items()}, cwd)
    demo = checked["model.path"] == DEMO and _is_demo(checked["data.train"])
    defaults = _training_defaults(checked, demo=demo)
    training = {key.partition(".")[2]: value for key, value in checked.items() if key.startswith("training.")}
    own_params, param_origins = _params(sources, params, params_file)
    config = RunConfig(
        **{name: _instance(name, checked) for name in TABLES},
        training={**defaults, **training},
        trackers=sources.trackers,
        params=own_params,
        origins={
            **dict.fromkeys(table_keys(), "default"),
            **of_adapter,
            **dict.fromkeys((f"training.{name}" for name in defaults), "default"),
            **sources.origins,
            **_with_renamed_keys({key: given.origin for key, given in sources.given.items()}),
            **param_origins,
        },
        over={key: [(given.value, given.origin) for given in over] for key, over in sources.over.items()},
        defaults=defaults,
        base_dir=cwd,
        demo=demo,
    )
    return check_consistency(config, trains=trains)


def load_trackers(
    config_path: Path | None, sets: Sequence[str], cwd: Path | None = None
) -> tuple[tuple[str, ...], Mapping[str, Mapping[str, Any]], Mapping[str, str]]:
    """The configured trackers, the options of each, and the origins of all settings; for commands that do not
    run anything."""
    sources = gather(config_path, (), sets, cwd or Path())
    chosen = _check_all({key: given for key, given in sources.given.items() if key.startswith("tracking.")})
    origins = {key: given.origin for key, given in sources.given.items()}
    return tuple(chosen.get("tracking.trackers", ())), sources.trackers, {**sources.origins, **origins}


def _check_all(given: Mapping[str, Given]) -> dict[str, Any]:
    """Check the values of all keys. Raises one `ConfigError` for all wrong ones."""
    checked, problems = {}, []
    method = _method(given)
    for key, entry in given.items():
        if holds_redacted(entry.value):
            how = "is" if entry.value == REDACTED else "contains"
            problems.append(
                f"{entry.origin}: {key} {how} {REDACTED} in place of a secret; set it again: --set {key}=…"
            )
            continue
        try:
            checked[key] = _check(key, entry, method)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise combined(list(dict.fromkeys(problems)))
    return checked


def _method(given: Mapping[str, Given]) -> str:
    """The method, which determines the fields of `[training]`. Raises `ConfigError` for an unknown one."""
    method: str = _check("run.method", given["run.method"], "") if "run.method" in given else DEFAULT
    return method


def _check(key: str, given: Given, method: str) -> Any:
    """The value of one key, converted to its field's type. Raises `ConfigError`."""
    table, _, name = key.partition(".")
    where = given.origin
    if table in TABLES:
        for field in fields(TABLES[table]):
            if field.name == name:
                return check_field(given.value, field, where=where, key=key)
    elif table == "training" and name in OWNED_TRAINING and method in (methods_with(name) or METHODS):
        raise ConfigError(f"{where}: {key} is managed by fmstune: {OWNED_TRAINING[name]}.")
    elif table == "training" and name in training_fields(method):
        known = training_fields(method)[name]
        if str(given.value).lower() == NONE and has_none(known):
            return None
        value = check_value(given.value, known.annotation, where=where, key=key, choices=known.choices)
        check_bounds(value, TRAINING_BOUNDS.get(name, {}), where=where, key=key)
        return value
    others = of_other_methods(key, method)
    if others is not None:
        raise ConfigError(f"{where}: {others}")
    raise ConfigError(f"{where}: there is no setting {shortened(key)}.{setting_hint(key, method)}")


def _with_renamed_keys(entries: dict[str, T]) -> dict[str, T]:
    """Rename the keys in `RENAMED_TRAINING` to their newer names, unless those are given."""
    renamed = {
        f"training.{old}": f"training.{new}"
        for old, new in RENAMED_TRAINING.items()
        if new in training_fields()
    }
    newer = {renamed[key]: value for key, value in entries.items() if key in renamed}
    return newer | {key: value for key, value in entries.items() if key not in renamed}


def _instance(table: str, checked: Mapping[str, Any]) -> Any:
    prefix = f"{table}."
    values = {key[len(prefix) :]: value for key, value in checked.items() if key.startswith(prefix)}
    return TABLES[table](**values)


def _choose_demo(checked: dict[str, Any], file: str | None) -> None:
    """Choose the demo if neither model nor data is given; raise if only one is."""
    # An empty value counts as given: an unset variable in a job script should not tune the demo.
    given = checked.keys() & {"model.path", "data.train"} or checked.get("data.eval")
    if not given and file is None:
        checked |= {"model.path": DEMO, "data.train": (DataSource(DEMO),)}
    where = f"in {file or CONFIG_FILE}"
    missing = []
    if not checked.get("model.path"):
        missing.append(f"no model is given: use --model, or set `path` under [model] {where}.")
    if not checked.get("data.train"):
        missing.append(f"no data is given: use --data, or set `train` under [data] {where}.")
    if missing:
        raise ConfigError(f"{' '.join(missing)} To try fmstune, use the built-in `{DEMO}`.")
    if _is_demo(checked["data.train"]) and not checked.keys() & {"data.eval", "data.eval_fraction"}:
        checked["data.eval"] = (DataSource(DEMO),)


def _is_demo(sources: Sequence[DataSource]) -> bool:
    return all(source.path == DEMO for source in sources)


def _training_defaults(checked: Mapping[str, Any], *, demo: bool) -> dict[str, Any]:
    """The defaults of `[training]` that differ from TRL's."""
    older = {new: old for old, new in RENAMED_TRAINING.items()}  # the only names in an older transformers
    known = training_fields()
    defaults = {name if name in known else older[name]: value for name, value in TRAINING_DEFAULTS.items()}
    method = METHODS[checked.get("run.method", DEFAULT)]
    if checked.get("lora.enabled"):
        defaults["learning_rate"] = method.lora_learning_rate
    if checked.get("data.eval") or checked.get("data.eval_fraction"):
        defaults["eval_strategy"] = "epoch"
    if demo:
        evaluates = "eval_strategy" in defaults
        defaults |= DEMO_TRAINING
        if method.demo_learning_rate is not None:
            defaults["learning_rate"] = method.demo_learning_rate
        if not evaluates:
            del defaults["eval_strategy"], defaults["eval_steps"]
        if "training.num_train_epochs" in checked:
            del defaults["max_steps"]  # it would override the requested epochs
    if checked.get("prompt_tuning.enabled"):
        defaults["learning_rate"] = PROMPT_TUNING_LEARNING_RATE
    return defaults | _keep_best(checked, defaults)


def _keep_best(checked: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings implied by keeping the best evaluation's weights: a checkpoint for each evaluation."""
    found: dict[str, Any] = {}
    if checked.get("run.early_stopping_patience"):
        # With its state from the checkpoint, a resumed run stops where an uninterrupted one would.
        found = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
        found["restore_callback_states_from_checkpoint"] = True
    best = checked.get("training.load_best_model_at_end", found.get("load_best_model_at_end"))
    strategy = checked.get("training.eval_strategy", defaults.get("eval_strategy", "no"))
    if best and strategy != "no":
        every = checked.get("training.eval_steps", defaults.get("eval_steps"))
        every = every or checked.get("training.logging_steps")
        found["save_strategy"] = strategy
        found |= {"save_steps": every} if strategy == "steps" and every else {}
    return found


def _params(
    sources: Sources, assignments: Sequence[str], file: Path | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The user's metadata from `[params]`, --params-file and --param, and the origin of each."""
    layers = []
    if file is not None:
        layers.append((read_params_file(file), shown_path(file)))
    layers.append((parse_params(assignments), "--param"))
    found = sources.params
    origins: dict[str, str] = {}
    for values, origin in layers:
        for name in values:
            key = dotted(["params", name])
            before = origins.get(key, sources.origins.get(key))
            if before is not None and not isinstance(found.get(name), Mapping):
                sources.over.setdefault(key, []).insert(0, Given(found.get(name), before))
            origins[key] = origin
        found = merged(found, values)
    return found, origins
