"""A run, from its configuration to its tuned model; `run` reads top to bottom in the order of events.

torch is imported only after the shippers have started, so that trackers are checked while it loads. With a
wrong configuration, nothing is imported or created.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fmstune.access import lacks_home
from fmstune.config.rules.unused import unused
from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole, watched_by
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import DeliveryReport
from fmstune.errors import RunError
from fmstune.hub import pinned
from fmstune.launch.environment import is_main_process
from fmstune.resources.source import SYSTEM
from fmstune.run.config_file import write_config
from fmstune.run.description import describe
from fmstune.run.ending import stoppable
from fmstune.run.locking import locked
from fmstune.run.look_ahead import look_ahead
from fmstune.run.recording import recorded
from fmstune.run.resolved import resolved_run
from fmstune.run.tracking import (
    checked_trackers,
    redactor_of,
    report_resumed,
    reports,
    sampled,
)
from fmstune.text import counted
from fmstune.trackers.base import Tracker

if TYPE_CHECKING:
    from fmstune.training.callbacks.timing import TimingCallback
    from fmstune.training.extensions import Extensions


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run: its directory, the last value of each metric by `stage/name`, the deliveries."""

    directory: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    delivery: tuple[DeliveryReport, ...] = ()


def run(
    config: RunConfig,
    out: RunConsole,
    *,
    resume: str | None = None,
    overwrite: bool = False,
    extensions: Extensions | None = None,
) -> RunResult:
    """Tune a model as described by `config`, with `extensions` in addition to those that it names.

    Raises its steps' errors, each with its exit code: `ConfigError`, `DataError`, `ModelError`,
    `TrackerCheckFailed`, and `Interrupted` after a signal; `RunError` if this process has another active run.
    """
    with one_at_a_time(), watched_by(out):
        return execute(config, out, resume, overwrite, extensions)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Allow only one run at a time in this process: metrics tracked from anywhere belong to it, and signals,
    random states and the libraries' state are shared by the process."""
    if not _running.acquire(blocking=False):
        raise RunError(
            "another run is active in this process, which can have only one at a time: wait until it ends, "
            "or start a process for each."
        )
    try:
        yield
    finally:
        _running.release()


_running = threading.Lock()
# A process forked during a run does not take part in it, and may have its own.
os.register_at_fork(after_in_child=lambda: _running.release() if _running.locked() else None)


def execute(
    config: RunConfig, out: RunConsole, resume: str | None, overwrite: bool, extensions: Extensions | None
) -> RunResult:
    """Execute a run, for a caller that holds `one_at_a_time`."""
    began = time.perf_counter()
    config, directory = resolved_run(config, out, resume, overwrite=overwrite)
    if directory.finished:
        if is_main_process():
            out.end(directory.path)
        return RunResult(directory.path, delivery=tuple(reports(directory.path)))
    _warn(config, out, extensions)
    look_ahead(config)
    config = pinned(config, out.warn, None if overwrite else directory.path)
    redactor = redactor_of(config)
    with (
        stoppable() as signals,
        checked_trackers(config, out) as (fleet, in_process),
        locked(directory, overwrite=overwrite) as (directory, lock),
    ):
        from fmstune.run.train import ActiveRun, train

        signals.raise_again()
        imported = time.perf_counter()
        write_config(config, directory.path, redactor)
        with recorded(config, directory, fleet, redactor, out, lock) as recorder:
            report_resumed(directory, fleet, out)
            with sampled(config, directory, recorder, out):
                timing = _timing(config, recorder, began, imported)
                metrics = train(ActiveRun(config, directory, recorder, out), in_process, extensions, timing)
    return RunResult(directory.path, metrics, tuple(reports(directory.path, config.tracking.trackers)))


def dry_run(
    config: RunConfig, out: RunConsole, *, resume: str | None = None, overwrite: bool = False
) -> None:
    """Do everything up to the first step, and leave no files. Raises the same errors as `run`."""
    config, directory = resolved_run(config, out, resume, overwrite=overwrite)
    if directory.finished:
        return
    _warn(config, out)
    look_ahead(config)
    config = pinned(config, out.warn, None if overwrite else directory.path)
    with (
        stoppable() as signals,
        checked_trackers(config, out) as (fleet, _),
        tempfile.TemporaryDirectory() as scratch,
    ):
        from fmstune.run.preflight import report_plan
        from fmstune.training.build import build_trainer

        signals.raise_again()
        report_resumed(directory, fleet, out)
        built = build_trainer(config, Tracker(), Path(scratch))
        built.bad_rows.file = None  # it goes with the scratch directory
        describe(built, out)
        report_plan(built, directory.path, out)
    left = max(0, built.steps - directory.step)
    out.say("dry run", f"ready for {counted(left, 'step')}; nothing was written")


def _timing(config: RunConfig, recorder: Recorder, began: float, imported: float) -> TimingCallback | None:
    """The callback that times the phases, on rank zero; `imported` is the time after imports and checks."""
    if config.resources.interval <= 0 or not is_main_process():
        return None
    from fmstune.training.callbacks.timing import TimingCallback

    return TimingCallback(
        lambda figures, step: recorder.track_sample(figures, SYSTEM, step), began, imported - began
    )


def _warn(config: RunConfig, out: RunConsole, extensions: Extensions | None = None) -> None:
    """Warn about settings that have no effect in this run, and of a missing home directory."""
    computes = extensions is not None and extensions.compute_metrics is not None
    for key, why in unused(config, computes_metrics=computes).items():
        out.warn(f"{config.at(key)}{key} has no effect in this run: {why}")
    if lacks_home():
        out.warn(
            "this user has no home directory: libraries may put files into a folder named ~ here. "
            "Set HOME to a directory"
        )
