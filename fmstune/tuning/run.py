"""A run, from its configuration to its tuned model: `run` reads top to bottom as what happens.

Nothing here imports torch until the shippers have been started, so that the trackers are checked while it
loads, and nothing at all is imported or created when the configuration is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
import traceback
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.config.dump import to_mapping, to_toml
from fmstune.config.schema import RunConfig
from fmstune.delivery.journal import FILE_NAME, Header, JournalWriter
from fmstune.delivery.ledger import TRACKING_DIR, all_ledgers
from fmstune.delivery.processes import Fleet
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.redaction import Redactor
from fmstune.delivery.report import DeliveryReport, report
from fmstune.delivery.shipper_process import Job, secret_texts
from fmstune.trackers.base import Check, Status, Tracker, TrackerError
from fmstune.trackers.registry import reference
from fmstune.tuning import provenance
from fmstune.tuning.console import RunConsole
from fmstune.tuning.directory import CONFIG_NAME, ERROR_LOG, RunDirectory, claim, clear
from fmstune.tuning.errors import RunError

if TYPE_CHECKING:
    from fmstune.tuning.extensions import Extensions
    from fmstune.tuning.trainer import BuiltTrainer


class TrackerCheckFailed(TrackerError):
    """A chosen tracker cannot be used, found before the model was loaded."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: its directory, the last value of each metric by `stage/name`, the deliveries."""

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
    """Tune the model that `config` describes, with `extensions` besides those that it names.

    Raises what its steps raise: `ConfigError`, `DataError`, `ModelError`, `TrackerCheckFailed`, and
    `Interrupted` after a signal; each has the exit code that it means.
    """
    directory = claim(config, resume, overwrite=overwrite, main=is_main_process())
    if directory.finished:
        out.say("done", f"the run in {directory.path} is finished already; there is nothing to go on with")
        return RunResult(directory.path, delivery=tuple(_reports(directory.path)))
    redactor = _redactor(config)
    with _checked_trackers(config, out) as (fleet, guests):
        if overwrite:
            clear(directory.path)
        _write_config(config, directory.path, redactor)
        with _recorded(config, directory, fleet, redactor, out) as recorder:
            _say_resumed(directory, recorder, fleet, out)
            metrics = _train(config, directory, recorder, guests, out, extensions)
    return RunResult(directory.path, metrics, tuple(_reports(directory.path)))


def _say_resumed(directory: RunDirectory, recorder: Recorder, fleet: Fleet, out: RunConsole) -> None:
    """Note the resumption in the journal, and say what becomes of steps that were logged before."""
    for checkpoint in directory.passed_over:
        out.warn(f"{checkpoint} was not written to its end, and is passed over")
    if directory.checkpoint is None:
        return
    recorder.resumed(directory.step)
    policies = [f"{policy} in {name}" for name, policy in fleet.repeated_steps().items()]
    again = f"; steps logged before are {', '.join(policies)}" if policies else ""
    out.say("resume", f"from {directory.checkpoint}{again}")


def dry_run(config: RunConfig, out: RunConsole) -> None:
    """Do everything up to the first step, and leave nothing behind."""
    directory = claim(config, None, overwrite=True)
    with _checked_trackers(config, out), tempfile.TemporaryDirectory() as scratch:
        from fmstune.tuning.preflight import foresee
        from fmstune.tuning.trainer import build_trainer

        built = build_trainer(config, Tracker(), Path(scratch))
        _describe(built, out)
        foresee(built, directory.path, out)
    out.say("dry run", f"all is ready for {built.steps} steps; nothing was written")


def _train(
    config: RunConfig,
    directory: RunDirectory,
    recorder: Recorder,
    guests: list[Job],
    out: RunConsole,
    given: Extensions | None,
) -> Mapping[str, float]:
    from fmstune.tuning.card import write_card
    from fmstune.tuning.extensions import Extensions
    from fmstune.tuning.memory import explained
    from fmstune.tuning.nonfinite import guard
    from fmstune.tuning.preflight import compare, prepare
    from fmstune.tuning.progress import ProgressCallback
    from fmstune.tuning.stopping import Interrupted, StopCallback, stopping
    from fmstune.tuning.trainer import build_trainer

    extensions = (given or Extensions()).with_configured(config.run)
    progress, stop = ProgressCallback(out), StopCallback()
    callbacks: list[Any] = [
        *_early_stopping(config),
        *_in_process(recorder, guests, config, out),
        progress,
        stop,
        _ledgers(directory.path),
    ]
    extensions = dataclasses.replace(extensions, callbacks=(*callbacks, *extensions.callbacks))
    with stopping(stop, lambda text: out.say("stopping", text), main_process=is_main_process()):
        built = build_trainer(config, recorder, directory.path, extensions)
        _describe(built, out)
        guard(built, config, directory.path, out)
        out.say("run", str(directory.path))
        _add_samples(config, built, recorder, out)
        expected = prepare(built, config, recorder, out)
        with explained(built.trainer):
            built.trainer.train(
                resume_from_checkpoint=str(directory.checkpoint) if directory.checkpoint else None
            )
        if stop.signum is not None:
            out.say("stopped", f"at step {built.trainer.state.global_step}; go on with --resume auto")
            raise Interrupted(stop.signum)
        _say_best(config, built, out)
        built.trainer.save_model(str(directory.path))
        if is_main_process():
            write_card(directory.path, config, built, progress.metrics)
    seconds, steps = progress.seconds_and_steps(built.trainer.state)
    compare(built, expected, recorder, out)
    out.say("done", f"{steps} steps in {seconds:.1f} s{progress.summary()}")
    out.say("saved", str(directory.path))
    return progress.metrics


@contextlib.contextmanager
def _checked_trackers(config: RunConfig, out: RunConsole) -> Iterator[tuple[Fleet, list[Job]]]:
    """Start a shipper for each tracker and import torch while they check theirs; end them at last."""
    names = [name for name in config.tracking.trackers if name != "none"] if is_main_process() else []
    jobs = [Job(name, reference(name), config.trackers.get(name, {})) for name in names]
    limits = config.tracking
    fleet = Fleet(jobs, check_within=limits.check_timeout, close_timeout=limits.close_timeout)
    try:
        quiet_libraries()
        import fmstune.tuning.trainer  # noqa: F401  (the seconds that torch and TRL take to import)
        from fmstune.tuning.device import check_device

        check_device(config)
        for name, check in fleet.check().items():
            _judge(name, check, config, out)
        yield fleet, fleet.dismiss_in_process()
    finally:
        fleet.abandon()


def _judge(name: str, check: Check, config: RunConfig, out: RunConsole) -> None:
    """A misconfiguration is an error now; an outage is a warning, since the journal keeps everything."""
    if check.ok:
        return
    found = f"{check.detail}. {check.remedy[:1].upper()}{check.remedy[1:]}".strip().rstrip(".")
    if not check.outage or config.tracking.strict:
        raise TrackerCheckFailed(f"the tracker {name} cannot be used: {found}.")
    out.warn(f"{name}: {found}. The run goes on; the journal keeps what {name} misses.")


@contextlib.contextmanager
def _recorded(
    config: RunConfig, directory: RunDirectory, fleet: Fleet, redactor: Redactor, out: RunConsole
) -> Iterator[Recorder]:
    """The run's journal with its Recorder active: whatever happens, it ends with the true status, and
    the shippers get their time to deliver it."""
    if not is_main_process():
        yield Recorder(JournalWriter(Path(os.devnull), _header(directory)), redactor)
        return
    from fmstune.tuning.checkpoints import continue_runs

    tracking = directory.path / TRACKING_DIR
    tracking.mkdir(parents=True, exist_ok=True)
    earlier = 0
    if directory.checkpoint is not None and not (tracking / FILE_NAME).exists():
        earlier = continue_runs(directory.checkpoint, directory.path)
    journal = JournalWriter(
        tracking / FILE_NAME,
        _header(directory, earlier),
        on_trouble=lambda why: out.warn(f"the journal cannot be written, the run goes on: {why}"),
    )
    recorder = Recorder(journal, redactor)
    fleet.sail(
        directory.path,
        [text for name in config.trackers for text in secret_texts(config.trackers[name])],
    )
    status: Status = "failed"
    error: str | None = None
    try:
        with active(recorder):
            _track_identity(recorder, config)
            yield recorder
        status = "finished"
    except BaseException as stopped:
        status, error = _how_it_ended(stopped)
        if status == "failed":
            _write_error_log(directory.path, redactor)
        raise
    finally:
        recorder.close(status, error)
        fleet.finish()
        journal.close()
        for line in _reports(directory.path):
            out.say(line.tracker, line.line())
            for change in line.changes:
                out.say("", f"adapted: {change}")
        if journal.unrecorded:
            out.warn(f"{journal.unrecorded} events could not be written to the journal and are lost")


def _how_it_ended(stopped: BaseException) -> tuple[Status, str | None]:
    from fmstune.tuning.stopping import Interrupted

    if isinstance(stopped, (Interrupted, KeyboardInterrupt)):
        return "interrupted", None
    first = next(iter(str(stopped).strip().splitlines()), "")
    return "failed", f"{type(stopped).__name__}: {first}" if first else type(stopped).__name__


def _track_identity(recorder: Recorder, config: RunConfig) -> None:
    """What the run is: the user's params, the resolved configuration, the versions, the commit."""
    if config.params:
        recorder.set_params(config.params, "params")
    recorder.set_params({k: v for k, v in to_mapping(config).items() if k != "params"}, "config")
    recorder.set_params(provenance.packages(), "packages")
    commit = provenance.git(Path.cwd())
    if commit:
        recorder.set_params(commit, "git")


def _in_process(recorder: Recorder, guests: list[Job], config: RunConfig, out: RunConsole) -> list[Any]:
    if not guests:
        return []
    from fmstune.delivery.in_process import GuardedTracker
    from fmstune.trackers.old_shape import build_tracker

    for job in guests:
        try:
            guest = GuardedTracker(build_tracker(job.reference, job.name, job.options), out.warn)
        except (
            Exception,
            SystemExit,
        ) as error:  # its shipper could build it; here it is the plug-in's
            out.warn(f"the tracker {job.name} is disabled for this run: {error}")
            continue
        recorder.guests.append(guest)
    return [guest.get_hf_callback() for guest in recorder.guests]


def _early_stopping(config: RunConfig) -> list[Any]:
    if config.run.early_stopping_patience is None:
        return []
    from transformers import EarlyStoppingCallback

    settings = config.run
    return [EarlyStoppingCallback(settings.early_stopping_patience, settings.early_stopping_threshold)]


def _add_samples(config: RunConfig, built: BuiltTrainer, recorder: Recorder, out: RunConsole) -> None:
    from fmstune.tuning.samples import SampleCallback, questions

    asked = questions(config.samples, built.tokenizer, built.trainer.eval_dataset)
    if asked:
        most = config.samples.max_new_tokens
        built.trainer.add_callback(SampleCallback(asked, most, built.tokenizer, recorder, out))


def _say_best(config: RunConfig, built: BuiltTrainer, out: RunConsole) -> None:
    """Which weights are kept, where the best evaluation decides that."""
    state, args = built.trainer.state, built.trainer.args
    if config.run.early_stopping_patience is not None and state.global_step < state.max_steps:
        evaluations = config.run.early_stopping_patience
        no_better = "1 evaluation was" if evaluations == 1 else f"{evaluations} evaluations were"
        out.say("stopped", f"early, at step {state.global_step} of {state.max_steps}: {no_better} no better")
    if args.load_best_model_at_end and state.best_metric is not None:
        name = str(args.metric_for_best_model).removeprefix("eval_")
        kept = "kept" if state.best_model_checkpoint else "not kept: there is no checkpoint of it"
        out.say("best", f"eval {name} {state.best_metric:.4g} at step {state.best_global_step}; {kept}")


def _ledgers(directory: Path) -> Any:
    from fmstune.tuning.checkpoints import LedgerCallback

    return LedgerCallback(directory)


def _describe(built: BuiltTrainer, out: RunConsole) -> None:
    identity = built.model_identity
    share = built.trainable / max(1, identity["parameters"])
    trained = "" if share == 1 else f", {share:.2%} trained"
    count = _count(identity["parameters"])
    out.say("model", f"{identity['path']} · {count} parameters{trained} · {built.precision.line()}")
    if built.adapter:
        out.say("adapter", built.adapter)
    padding = f" · {built.padding.line()}" if built.padding else ""
    out.say("data", f"{built.data.line()}{padding}")
    for note in built.notes:
        out.warn(note)
    for line in built.bad_rows.lines():
        out.say("skipped", line)


def _count(number: int) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _write_config(config: RunConfig, directory: Path, redactor: Redactor) -> None:
    if not is_main_process():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = to_toml(config, redactor.mapping(to_mapping(config)))
        (directory / CONFIG_NAME).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{directory} cannot be written to: {error.strerror or error}.") from error


def _write_error_log(directory: Path, redactor: Redactor) -> None:
    with contextlib.suppress(OSError):  # the disk may be what failed; the error itself is on the screen
        (directory / ERROR_LOG).write_text(redactor.text(traceback.format_exc()), encoding="utf-8")


def _reports(directory: Path) -> list[DeliveryReport]:
    """The state of each delivery; trackers that work in this process have none."""
    if not is_main_process():
        return []
    return report(directory, [ledger.tracker for ledger in all_ledgers(directory)])


def _redactor(config: RunConfig) -> Redactor:
    return Redactor(secrets=tuple(t for options in config.trackers.values() for t in secret_texts(options)))


def _header(directory: RunDirectory, after: int = 0) -> Header:
    name = directory.path.resolve().name
    return Header(uuid.uuid4().hex, name, time.time(), str(Path.cwd()), after)


def is_main_process() -> bool:
    """Whether this is world rank zero, the only process that journals, ships and prints."""
    return os.environ.get("RANK", "0") == "0"


def quiet_libraries() -> None:
    """Turn off what libraries print by themselves, and TRL's message to a hub at each trainer's start
    (unless the user has decided about that himself). Before their import: they read it then."""
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # What libraries deprecate among themselves is nothing that a user of this tool could mend.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
