"""The Python interface: `fmstune.train`, the same run as `fmstune train`."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fmstune.config.load.layers import FROM_PYTHON, keeps_value
from fmstune.config.load.load import Flag
from fmstune.config.load.python_values import from_python
from fmstune.config.load.values import dotted
from fmstune.config.schema.data import handler_name
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_NAME
from fmstune.text import listed, shown
from fmstune.user_code import require_own_process

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fmstune.config.schema.tables import RunConfig
    from fmstune.run.run import RunResult
    from fmstune.training.extensions import ComputeMetrics


def train(
    config: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]]
    | TrainerCallback
    | type[TrainerCallback] = (),
    compute_metrics: ComputeMetrics | None = None,
    data_handler: Callable[[dict[str, Any]], Any] | None = None,
    quiet: bool = False,
) -> RunResult:
    """Tune a model, and return the result: the run's directory, its last metrics, the state of each delivery.

        result = fmstune.train(settings={"model.path": "demo", "data.train": "demo", "training.max_steps": 20,
                                         "tracking.trackers": ["aim"], "params": {"team": "nlp"}})
        result.metrics["eval/loss"], result.directory

    `config` is a TOML file. Like the command, it defaults to `fmstune.toml` in the current directory, if
    there is one. `settings` override it: dotted keys or nested tables, whose values may also be paths or
    NumPy scalars. `None` unsets what can be unset, such as `training.max_length`; other settings keep their
    value, and those that the file sets are named. `resume` is the path of a checkpoint or run, or `auto`:
    the run in `training.output_dir`, or else the newest unfinished one in `runs/`.
    `callbacks` and `compute_metrics` are passed to the Trainer; an exception that they raise ends the run.
    `data_handler` maps each row to a row, to several, or to `None`, which drops it. `quiet` prints nothing.

    Raises the errors that the command prints, with its exit code as `exit_code`: `ConfigError`, `DataError`,
    `ModelError`, `RunError`, and `TrackerCheckFailed`. After SIGTERM, SIGINT or SIGHUP, it saves a checkpoint
    and raises `fmstune.errors.Interrupted`.
    """
    drawn = random.getstate()  # importing rich draws from it
    try:
        return _train(
            config, settings, resume, overwrite, callbacks, compute_metrics, data_handler, quiet=quiet
        )
    finally:
        random.setstate(drawn)


def _train(
    config: str | os.PathLike[str] | None,
    settings: Mapping[str, Any] | None,
    resume: str | os.PathLike[str] | None,
    overwrite: bool,
    callbacks: Any,
    compute_metrics: ComputeMetrics | None,
    data_handler: Callable[[dict[str, Any]], Any] | None,
    *,
    quiet: bool,
) -> RunResult:
    from rich.console import Console

    from fmstune.launch.environment import drop_empty_size, is_main_process
    from fmstune.launch.process_state import quiet_for_a_run
    from fmstune.launch.termination_log import requested_path, written_from_python
    from fmstune.report.console import SummingConsole
    from fmstune.requirements import require_supported
    from fmstune.run.resolve import load_config
    from fmstune.run.run import execute, one_at_a_time
    from fmstune.run.unfinished import continued, to_resume
    from fmstune.system.forked_threads import use_one_thread_if_forked
    from fmstune.system.threads import set_threads

    require_own_process()
    _require_directory()
    require_supported(complete=True)
    _require_kinds(compute_metrics=compute_metrics, data_handler=data_handler)
    file = Path(_path("config", config)) if config is not None else None
    checkpoint = _path("resume", resume) if resume is not None else None
    given = tuple(callbacks) if isinstance(callbacks, (list, tuple)) else (callbacks,)
    drop_empty_size()
    # Notebooks get lines, too: as displays, they would be out of order among those that are printed.
    console = Console(stderr=True, force_jupyter=False)
    out = SummingConsole(console, quiet=quiet or not is_main_process())
    with one_at_a_time(), quiet_for_a_run():  # before the imports that need transformers
        if forked := use_one_thread_if_forked():
            out.warn(forked)
        every = _flags({} if settings is None else settings)
        unset = [key for key, value, _ in every if value is None and keeps_value(key)]
        flags = [flag for flag in every if flag[1] is not None or flag[0] not in unset]
        sets = [part for key, value, _ in flags for part in ("--set", f"{key}={value}")]
        with written_from_python(requested_path(["train", *([str(file)] if file else []), *sets])):
            resolved = load_config(file, flags, [], [], None)
            if checkpoint == "auto" and resolved.output_dir is None:
                found = to_resume(file)
                flags.append(("training.output_dir", str(found), FROM_PYTHON))
                resolved = load_config(file or found / CONFIG_NAME, flags, [], [], None)
            elif checkpoint is not None and (own := continued(checkpoint, resolved)) is not None:
                resolved = load_config(own / CONFIG_NAME, flags, [], [], None)
        if left := _left(unset, resolved):
            out.warn(left)
        with written_from_python(resolved.run.termination_log):
            _require_given_once(resolved, compute_metrics, data_handler)
            if data_handler is not None:
                data = dataclasses.replace(resolved.data, handler=cast(Any, data_handler))
                resolved = dataclasses.replace(resolved, data=data)
            set_threads()  # before the import below, at which torch fixes its number of threads
            from fmstune.training.extensions import Extensions

            return execute(
                resolved,
                out,
                checkpoint,
                overwrite,
                Extensions(given, compute_metrics).with_instances(),
            )


def _require_directory() -> None:
    try:
        Path.cwd()
    except OSError:  # the imports need it, too
        raise ConfigError("the current directory no longer exists; change to another one.") from None


def _require_given_once(config: RunConfig, compute_metrics: Any, data_handler: Any) -> None:
    """Raise `ConfigError` if a function is passed and the configuration names a different one: one of the two
    would not be used. The same function is fine: a run's `config.toml` names those passed from Python."""
    for argument, key, named, given in (
        ("compute_metrics", "run.compute_metrics", config.run.compute_metrics, compute_metrics),
        ("data_handler", "data.handler", config.data.handler, data_handler),
    ):
        if given is not None and named is not None and named != handler_name(given):
            raise ConfigError(
                f"{config.at(key)}{key} = {shown(named)} and {argument} = {handler_name(given)} are two "
                f"different functions for the same purpose; leave one of them out."
            )


def _require_kinds(**functions: Any) -> None:
    for name, given in functions.items():
        if given is not None and not callable(given):
            raise ConfigError(f"{FROM_PYTHON}: {name} = {shown(given)} is not a function.")


def _path(name: str, given: Any) -> str:
    try:
        path = os.fspath(given)
    except TypeError:
        hint = "; pass settings as settings={…}" if isinstance(given, Mapping) else ""
        raise ConfigError(f"{FROM_PYTHON}: {name} = {shown(given)} is not a path{hint}.") from None
    return os.fsdecode(path)


def _flags(settings: Mapping[str, Any]) -> list[Flag]:
    """The settings as dotted keys and values, as a file would give them."""
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"{FROM_PYTHON}: settings = {shown(settings)} is not a mapping; "
            "pass one such as {'training.max_steps': 20}."
        )
    flags: list[Flag] = []
    for key, value in settings.items():
        if not isinstance(key, str):
            raise ConfigError(f"{FROM_PYTHON}: {key!r} is not a key; use one such as training.learning_rate.")
        plain = from_python(value, FROM_PYTHON, *key.split("."))
        if isinstance(plain, Mapping) and "." not in key:
            flags += [(dotted([key, name]), item, FROM_PYTHON) for name, item in plain.items()]
        else:
            flags.append((key, plain, FROM_PYTHON))
    return flags


def _left(unset: Sequence[str], config: RunConfig) -> str | None:
    """A message about settings that a file sets and `None` leaves so."""
    left = [
        f"{key} ({config.origins[key]})" for key in unset if config.origins.get(key, "default") != "default"
    ]
    return f"None does not unset {listed(left)}: pass another value" if left else None
