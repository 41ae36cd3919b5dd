"""A run, from its configuration to its tuned model; `run` reads top to bottom in the order of events.

torch is imported only after the shippers have started, so that trackers are checked while it loads. With a
wrong configuration, nothing is imported or created.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.config.inspect.dump import HEADER, to_mapping, to_toml
from fmstune.config.inspect.provenance import with_origins, written_origins
from fmstune.config.methods.known import METHODS
from fmstune.config.rules.unused import unused
from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole, phase, watched_by
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import DeliveryReport
from fmstune.delivery.shipping.process import Job
from fmstune.errors import Interrupted, RunError
from fmstune.hub import pinned
from fmstune.launch.environment import is_main_process
from fmstune.layout import CONFIG_NAME
from fmstune.resources.source import SYSTEM
from fmstune.run.description import describe
from fmstune.run.directory import RunDirectory
from fmstune.run.locking import locked
from fmstune.run.look_ahead import look_ahead
from fmstune.run.resolved import resolved_run
from fmstune.run.resume import finish
from fmstune.run.tracking import (
    checked_trackers,
    in_process_callbacks,
    recorded,
    redactor_of,
    report_resumed,
    reports,
    sampled,
)
from fmstune.secrets.redaction import Redactor, process_redactor
from fmstune.system.allocator import freed_memory_kept
from fmstune.system.files import replace_text
from fmstune.text import counted
from fmstune.trackers.base import Tracker

if TYPE_CHECKING:
    from fmstune.training.build import BuiltTrainer
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
    _warn_unused(config, out, extensions)
    look_ahead(config)
    config = pinned(config, out.warn, None if overwrite else directory.path)
    redactor = redactor_of(config)
    with (
        checked_trackers(config, out) as (fleet, in_process),
        locked(directory, overwrite=overwrite) as (directory, lock),
    ):
        imported = time.perf_counter()
        _write_config(config, directory.path, redactor)
        with recorded(config, directory, fleet, redactor, out, lock) as recorder:
            report_resumed(directory, fleet, out)
            with sampled(config, directory, recorder, out):
                timing = _timing(config, recorder, began, imported)
                metrics = _train(config, directory, recorder, in_process, out, extensions, timing)
    return RunResult(directory.path, metrics, tuple(reports(directory.path, config.tracking.trackers)))


def dry_run(
    config: RunConfig, out: RunConsole, *, resume: str | None = None, overwrite: bool = False
) -> None:
    """Do everything up to the first step, and leave no files. Raises the same errors as `run`."""
    config, directory = resolved_run(config, out, resume, overwrite=overwrite)
    if directory.finished:
        return
    _warn_unused(config, out)
    look_ahead(config)
    config = pinned(config, out.warn, None if overwrite else directory.path)
    with checked_trackers(config, out) as (fleet, _), tempfile.TemporaryDirectory() as scratch:
        from fmstune.run.preflight import report_plan
        from fmstune.training.build import build_trainer

        report_resumed(directory, fleet, out)
        built = build_trainer(config, Tracker(), Path(scratch))
        describe(built, out)
        report_plan(built, directory.path, out)
    left = max(0, built.steps - directory.step)
    out.say("dry run", f"ready for {counted(left, 'step')}; nothing was written")


def _train(
    config: RunConfig,
    directory: RunDirectory,
    recorder: Recorder,
    in_process: list[Job],
    out: RunConsole,
    given: Extensions | None,
    timing: TimingCallback | None,
) -> Mapping[str, float]:
    from fmstune.data.changed import changed_data, recorded_params
    from fmstune.models.end_tokens import save_settings
    from fmstune.run.artifacts import Artifacts
    from fmstune.run.data_rows import write_data_rows
    from fmstune.run.model_card import write_card
    from fmstune.run.preflight import compare, prepare
    from fmstune.run.stream_watch import StreamWatch, stream_ended
    from fmstune.run.tracker_runs import ledger_copier
    from fmstune.training.build import build_trainer
    from fmstune.training.callbacks.progress import LastStepCallback, ProgressCallback
    from fmstune.training.callbacks.stopping import StopCallback, stopping
    from fmstune.training.decided import changed_decisions
    from fmstune.training.extensions import Extensions
    from fmstune.training.memory.outlook import explained
    from fmstune.training.trainers.nonfinite import guard
    from fmstune.training.tuned_trainer import Saving, save_with

    extensions = (given or Extensions()).with_configured(config.run)
    progress, stop = ProgressCallback(out, METHODS[config.run.method].shown), StopCallback()
    callbacks: list[Any] = [
        *filter(None, [timing]),
        *_early_stopping(config),
        *in_process_callbacks(recorder, in_process, directory.path, config.tracking.in_process_timeout, out),
        LastStepCallback(),
        progress,
    ]
    extensions = dataclasses.replace(extensions, callbacks=(*callbacks, *extensions.callbacks, stop))
    stops = stopping(stop, lambda text: out.say("stopping", text), main_process=is_main_process())
    with stops, contextlib.ExitStack() as after:  # building the trainer records the data
        before = recorded_params(directory.checkpoint.parent) if directory.checkpoint else {}
        built = build_trainer(config, recorder, directory.path, extensions)
        after.callback(built.trainer.end_workers)
        if timing is not None:
            timing.attach(built.trainer, built.model_seconds, built.data_seconds)
        describe(built, out)
        decided = _record_decided(config, built, directory.path, recorder)
        if changed := changed_decisions(before.get("decided", {}), decided):
            out.warn(f"decided otherwise than when the run was started: {changed}")
        if changed := changed_data(before.get("data", {}), built.data):
            out.warn(f"the data has changed since the run was started; using the current data: {changed}")
        guard(built.trainer, config, directory.path, out, places=built.places, decode=built.tokenizer.decode)
        out.say("run", str(directory.path))
        if is_main_process():
            with contextlib.suppress(OSError):  # only for the report; a full disk is handled elsewhere
                write_data_rows(built, directory.path)
        _add_samples(config, built, recorder, out)
        if built.data.streaming and is_main_process():
            built.trainer.add_callback(StreamWatch(directory.path, built.data.unused, out))
        handed = Artifacts(config, directory, recorder, out, built)
        after.callback(handed.end, config.tracking.close_timeout)
        save_with(built.trainer, Saving(ledger_copier(directory.path, recorder), handed.add, out.warn), after)
        expected = prepare(built, config, recorder, out)
        checkpoint = directory.checkpoint
        if checkpoint is not None and directory.step >= built.steps:
            out.say("resume", f"step {built.steps} was the last; only saving the model is left")
            finish(built.trainer, checkpoint)
        else:
            with explained(built.trainer, stop), freed_memory_kept():
                built.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        built = stream_ended(built, directory.path, recorder, out)
        if stop.signum is not None:
            state = built.trainer.state
            out.say("stopped", f"at step {state.global_step} of {state.max_steps}")
            raise Interrupted(stop.signum)
        _report_best(config, built, out)
        phase("saving the model")
        built.trainer.save_model(str(directory.path))
        if built.ends and built.adapter and is_main_process():
            save_settings(built.trainer.model, directory.path)
        if is_main_process():
            write_card(directory.path, config, built, progress.metrics)
            handed.finish()
    seconds, steps = progress.seconds_and_steps(built.trainer.state)
    compare(built, expected, recorder, out)
    out.say("done", f"{counted(steps, 'step')} in {seconds:.1f} s")
    dtype = str(built.trainer.saved_dtype() or "").removeprefix("torch.")
    held = built.model_identity["dtype"]
    out.say("saved", f"{directory.path}{f' · weights in {dtype}' if dtype and dtype != held else ''}")
    return progress.metrics


def _timing(config: RunConfig, recorder: Recorder, began: float, imported: float) -> TimingCallback | None:
    """The callback that times the phases, on rank zero; `imported` is the time after imports and checks."""
    if config.resources.interval <= 0 or not is_main_process():
        return None
    from fmstune.training.callbacks.timing import TimingCallback

    return TimingCallback(
        lambda figures, step: recorder.track_sample(figures, SYSTEM, step), began, imported - began
    )


def _warn_unused(config: RunConfig, out: RunConsole, extensions: Extensions | None = None) -> None:
    """Warn about settings that have no effect in this run."""
    computes = extensions is not None and extensions.compute_metrics is not None
    for key, why in unused(config, computes_metrics=computes).items():
        out.warn(f"{config.at(key)}{key} has no effect in this run: {why}")


def _early_stopping(config: RunConfig) -> list[Any]:
    if config.run.early_stopping_patience is None:
        return []
    from transformers import EarlyStoppingCallback

    settings = config.run
    return [EarlyStoppingCallback(settings.early_stopping_patience, settings.early_stopping_threshold)]


def _add_samples(config: RunConfig, built: BuiltTrainer, recorder: Recorder, out: RunConsole) -> None:
    from fmstune.training.callbacks.samples import SampleCallback, questions

    asked = questions(config.samples, built.tokenizer, built.trainer.eval_dataset)
    if asked:
        most = config.samples.max_new_tokens
        built.trainer.add_callback(SampleCallback(asked, most, built.tokenizer, recorder, out))


def _report_best(config: RunConfig, built: BuiltTrainer, out: RunConsole) -> None:
    """Report which weights are kept, if the best evaluation decides that."""
    state, args = built.trainer.state, built.trainer.args
    if config.run.early_stopping_patience is not None and state.global_step < state.max_steps:
        missed = counted(config.run.early_stopping_patience, "evaluation")
        at = f"step {state.global_step} of {state.max_steps}"
        out.say("stopped", f"early, at {at}: no improvement in {missed}")
    if args.load_best_model_at_end and state.best_metric is not None:
        name = str(args.metric_for_best_model).removeprefix("eval_")
        kept = "kept" if state.best_model_checkpoint else "not kept: it has no checkpoint"
        out.say("best", f"eval {name} {state.best_metric:.4g} at step {state.best_global_step}; {kept}")


def _record_decided(
    config: RunConfig, built: BuiltTrainer, directory: Path, recorder: Recorder
) -> Mapping[str, Any]:
    """Record the settings that this run decided, as params and in a comment in `config.toml`: a repetition on
    another machine may decide differently. Returns them."""
    from fmstune.training.decided import decided

    found = decided(config, built)
    if int(config.training.get("max_steps", -1)) <= 0:
        found["max_steps"] = built.steps  # so that followers of the run know its progress
    recorder.set_params(found, "decided")
    lines = "".join(f"training.{name} = {json.dumps(value, default=str)}\n" for name, value in found.items())
    _write_config(
        config, directory, process_redactor(), f"{HEADER}Decided from the machine and the data:\n{lines}"
    )
    return found


def _write_config(config: RunConfig, directory: Path, redactor: Redactor, header: str = HEADER) -> None:
    if not is_main_process():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = to_toml(config, redactor.configuration(to_mapping(config)), header=redactor.text(header))
        known = written_origins(directory / CONFIG_NAME)
        # Settings that a resumed run reads from its own file keep their original origin.
        own = {str(directory / CONFIG_NAME), CONFIG_NAME}
        origins = {
            key: known.get(key, "default") if origin in own else origin
            for key, origin in config.origins.items()
        }
        text = with_origins(text, {key: redactor.text(origin) for key, origin in origins.items()})
        replace_text(directory / CONFIG_NAME, text)  # atomically, since a resumed run reads it
    except OSError as error:
        raise RunError(f"{directory} cannot be written to: {error.strerror or error}.") from error
