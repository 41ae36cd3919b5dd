"""The training of a run, with torch imported: build the trainer, train, and save the model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import EarlyStoppingCallback

from fmstune.config.inspect.dump import HEADER
from fmstune.config.methods.known import METHODS
from fmstune.config.schema.data import eval_sets
from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole, phase
from fmstune.data.changed import changed_data, evaluates_otherwise, recorded_params
from fmstune.data.summary import learns_chats
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.process import Job
from fmstune.errors import Interrupted
from fmstune.launch.environment import is_main_process
from fmstune.models.base_weights import changed_base
from fmstune.models.end_tokens import save_settings
from fmstune.run.artifacts import Artifacts
from fmstune.run.config_file import write_config
from fmstune.run.data_rows import write_data_rows
from fmstune.run.description import describe
from fmstune.run.directory import RunDirectory
from fmstune.run.model_card import write_card
from fmstune.run.preflight import compare, prepare
from fmstune.run.resume import finish, moved, stopped_early
from fmstune.run.stream_watch import StreamWatch, stream_ended
from fmstune.run.tracker_runs import ledger_copier
from fmstune.run.tracking import in_process_callbacks
from fmstune.secrets.redaction import process_redactor
from fmstune.system.allocator import freed_memory_kept
from fmstune.text import counted
from fmstune.training.build import BuiltTrainer, build_trainer
from fmstune.training.callbacks.progress import LastStepCallback, ProgressCallback
from fmstune.training.callbacks.samples import SampleCallback, questions
from fmstune.training.callbacks.stopping import StopCallback, stopping
from fmstune.training.callbacks.timing import TimingCallback
from fmstune.training.callbacks.unreached import Unreached
from fmstune.training.decided import changed_decisions, decided
from fmstune.training.extensions import Extensions
from fmstune.training.memory.outlook import explained
from fmstune.training.trainers.eval_sets import sets_of
from fmstune.training.trainers.nonfinite import guard
from fmstune.training.tuned_trainer import Saving, save_with


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run that has its directory, and whose events are recorded."""

    config: RunConfig
    directory: RunDirectory
    recorder: Recorder
    out: RunConsole


def train(
    run: ActiveRun, in_process: list[Job], given: Extensions | None, timing: TimingCallback | None
) -> Mapping[str, float]:
    """Train the model of a run and save it into its directory. Returns the last value of each metric.

    `in_process` are the trackers whose callbacks run in this process. Raises `Interrupted` after a signal,
    once a checkpoint is saved.
    """
    config, directory, out = run.config, run.directory.path, run.out
    of_sets = [(f"{name}_loss", f"{name}_loss") for name in eval_sets(config.data.eval)]
    extensions = (given or Extensions()).with_configured(config)
    progress = ProgressCallback(out, [*METHODS[config.run.method].shown, *of_sets], extensions.computed)
    stop = StopCallback()
    callbacks: list[Any] = [
        *filter(None, [timing]),
        *_early_stopping(config),
        *in_process_callbacks(run.recorder, in_process, directory, config.tracking.in_process_timeout, out),
        LastStepCallback(),
        progress,
    ]
    extensions = dataclasses.replace(extensions, callbacks=(*callbacks, *extensions.callbacks, stop))
    stops = stopping(stop, lambda text: out.say("stopping", text), main_process=is_main_process())
    with stops, contextlib.ExitStack() as after:
        built = _build(run, extensions, after)
        if timing is not None:
            timing.attach(built.trainer, built.model_seconds, built.data_seconds)
        artifacts = _attach(run, built, after)
        expected = prepare(built, config, run.recorder, out)
        _fit(run, built, stop)
        built = stream_ended(built, directory, run.recorder, out)
        if stop.asked is not None:
            state = built.trainer.state
            out.say("stopped", f"at step {state.global_step} of {state.max_steps}")
            raise Interrupted(stop.asked)
        _report_best(config, built, out)
        phase("saving the model")
        built.trainer.save_model(str(directory))
        if built.ends and built.adapter and is_main_process():
            save_settings(built.trainer.model, directory)
        if is_main_process():
            write_card(directory, config, built, progress.metrics, run.directory.step)
            artifacts.finish()
    seconds, steps = progress.seconds_and_steps(built.trainer.state)
    compare(built, expected, run.recorder, out)
    out.say("done", f"{counted(steps, 'step')} in {seconds:.1f} s")
    dtype = str(built.trainer.saved_dtype() or "").removeprefix("torch.")
    held = built.model_identity["dtype"]
    out.say("saved", f"{directory}{f' · weights in {dtype}' if dtype and dtype != held else ''}")
    return progress.metrics


def _build(run: ActiveRun, extensions: Extensions, after: contextlib.ExitStack) -> BuiltTrainer:
    """Build the trainer, and report what a resumed run does otherwise than before."""
    checkpoint, out = run.directory.checkpoint, run.out
    before = recorded_params(checkpoint.parent) if checkpoint else {}  # building it records them again
    built = build_trainer(run.config, run.recorder, run.directory.path, extensions)
    after.callback(built.trainer.end_workers)
    describe(built, out)
    if changed := changed_decisions(before.get("decided", {}), _record_decided(run, built)):
        out.warn(f"decided otherwise than when the run was started: {changed}")
    if checkpoint is not None:
        weights = built.trainer.own_files.weights
        if other := changed_base(checkpoint, str(built.model_identity["path"]), weights):
            out.warn(other)
    if changed := changed_data(before.get("data", {}), built.data):
        out.warn(f"the data has changed since the run was started; using the current data: {changed}")
        best = built.trainer.args.metric_for_best_model
        if checkpoint is not None and best and evaluates_otherwise(before.get("data", {}), built.data):
            out.warn(f"the best {best} until now is that of the earlier evaluation data")
    elif checkpoint is not None and (place := moved(built.trainer, checkpoint)):
        out.warn(place)
    return built


def _attach(run: ActiveRun, built: BuiltTrainer, after: contextlib.ExitStack) -> Artifacts:
    """Attach to the trainer what a run adds to it: the guard against broken weights, samples, artifacts."""
    config, directory, out, trainer = run.config, run.directory.path, run.out, built.trainer
    guard(trainer, config, directory, out, places=built.places, decode=built.tokenizer.decode)
    out.say("run", str(directory))
    if is_main_process():
        with contextlib.suppress(OSError):  # only for the report; a full disk is handled elsewhere
            write_data_rows(built, directory)
    sets = dict(sets_of(trainer.eval_dataset, trainer.eval_sets))
    chats = learns_chats(built.data.shape)
    if asked := questions(config.samples, built.tokenizer, sets or {"": trainer.eval_dataset}, chats=chats):
        most = config.samples.max_new_tokens
        trainer.add_callback(SampleCallback(asked, most, built.tokenizer, run.recorder, out))
    if built.data.streaming and is_main_process():
        trainer.add_callback(StreamWatch(directory, built.data.unused, out))
    if is_main_process() and not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
        trainer.add_callback(Unreached(out.warn))  # these hold gradients of parts, and elsewhere
    artifacts = Artifacts(config, run.directory, run.recorder, out, built)
    after.callback(artifacts.end, config.tracking.close_timeout)
    journal = run.recorder.journal
    saving = Saving(ledger_copier(directory, run.recorder), journal.flush, artifacts.add, out.warn)
    save_with(trainer, saving, after)
    return artifacts


def _fit(run: ActiveRun, built: BuiltTrainer, stop: StopCallback) -> None:
    """Train to the last step, from the checkpoint if the run is resumed."""
    checkpoint = run.directory.checkpoint
    if checkpoint is not None and run.directory.step >= built.steps:
        run.out.say("resume", f"step {built.steps} was the last; only saving the model is left")
        finish(built.trainer, checkpoint)
        return
    if checkpoint is not None and stopped_early(checkpoint, run.config):
        at = f"step {run.directory.step}"
        run.out.say("resume", f"the run had stopped early at {at}; only saving the model is left")
        finish(built.trainer, checkpoint)
        return
    if checkpoint is not None:
        # The run has been evaluated at its start; doing it again would count for the patience.
        built.trainer.args.eval_on_start = False
    with explained(built.trainer, stop), freed_memory_kept():
        built.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _early_stopping(config: RunConfig) -> list[Any]:
    if config.run.early_stopping_patience is None:
        return []
    settings = config.run
    return [EarlyStoppingCallback(settings.early_stopping_patience, settings.early_stopping_threshold)]


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


def _record_decided(run: ActiveRun, built: BuiltTrainer) -> Mapping[str, Any]:
    """Record the settings that this run decided, as params and in a comment in `config.toml`: a repetition on
    another machine may decide differently. Returns them."""
    config = run.config
    found = decided(config, built)
    if int(config.training.get("max_steps", -1)) <= 0:
        found["max_steps"] = built.steps  # so that followers of the run know its progress
    run.recorder.set_params(found, "decided")
    lines = "".join(f"training.{name} = {json.dumps(value, default=str)}\n" for name, value in found.items())
    header = f"{HEADER}Decided from the machine and the data:\n{lines}"
    write_config(config, run.directory.path, process_redactor(), header)
    return found
