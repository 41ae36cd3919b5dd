"""The run's tracking: check the trackers before the run, and keep its journal until the end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fmstune.config.inspect.dump import to_mapping
from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.delivery.delivered_files import release_links
from fmstune.delivery.journal.labels import labels_of
from fmstune.delivery.journal.reader import Header, JournalError
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import all_ledgers, highest_known
from fmstune.delivery.place import become_own_run, original_of, record_place
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.report import DeliveryReport, report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.errors import ConfigError, Interrupted
from fmstune.launch.environment import is_main_process, quiet_libraries
from fmstune.launch.rank import needs_process_group
from fmstune.layout import ERROR_LOG, JOURNAL_NAME, TRACKING_DIR
from fmstune.resources.scanner import scanned
from fmstune.resources.source import SYSTEM
from fmstune.run import provenance
from fmstune.run.directory import RunDirectory
from fmstune.run.ending import StopSignals
from fmstune.secrets.redaction import Redactor, config_secrets, hide, know_secrets, process_redactor
from fmstune.system.locks import Lock
from fmstune.system.threads import set_threads
from fmstune.text import counted
from fmstune.trackers.records import Check, Status, TrackerError
from fmstune.trackers.registry import reference
from fmstune.training.sdks import sdks_deferred


class TrackerCheckFailed(TrackerError):
    """A chosen tracker cannot be used; raised before the model is loaded."""

    exit_code = 3


@contextlib.contextmanager
def checked_trackers(config: RunConfig, out: RunConsole) -> Iterator[tuple[Fleet, list[Job]]]:
    """Start a shipper for each tracker, import torch while they run their checks, and end them with the
    block."""
    names = [name for name in config.tracking.trackers if name != "none"] if is_main_process() else []
    jobs = [Job(name, reference(name), config.trackers.get(name, {})) for name in names]
    limits = config.tracking
    fleet = Fleet(jobs, check_within=limits.check_timeout, close_timeout=limits.close_timeout)
    try:
        quiet_libraries()
        out.phase("loading libraries")
        if threads := set_threads():
            out.say("threads", threads)
        with sdks_deferred():
            import fmstune.training.build  # noqa: F401  (the seconds that torch and TRL take to import)
        from fmstune.system.deepspeed import check_deepspeed
        from fmstune.system.device import check_device

        check_device(config)
        if needs_process_group(config.training):  # only through the API: `fmstune train` makes one
            key = "training.fsdp" if config.training.get("fsdp") else "training.deepspeed"
            raise ConfigError(
                f"{config.at(key)}{key} needs torch's process group, even for one process: start the script "
                "with torchrun, or train with `fmstune train`."
            )
        check_deepspeed(config)
        for name, check in fleet.check("--set tracking.check_timeout=SECONDS").items():
            _require_usable(name, check, config, out)
        yield fleet, fleet.dismiss_in_process()
    finally:
        fleet.abandon()


def _require_usable(name: str, check: Check, config: RunConfig, out: RunConsole) -> None:
    """Raise for a misconfiguration; warn about an outage, since the journal keeps everything."""
    if check.ok:
        return
    found = f"{check.detail}. {check.remedy[:1].upper()}{check.remedy[1:]}".strip().rstrip(".")
    if not check.outage or config.tracking.strict:
        raise TrackerCheckFailed(f"the tracker {name} cannot be used: {found}.")
    out.warn(f"{name}: {found}. The run continues; the journal keeps what {name} misses.")


@contextlib.contextmanager
def recorded(
    config: RunConfig,
    directory: RunDirectory,
    fleet: Fleet,
    redactor: Redactor,
    out: RunConsole,
    lock: Lock | None = None,
) -> Iterator[Recorder]:
    """Keep the run's journal, with an active Recorder: whatever happens, it ends with the true status, and
    the shippers get time to deliver it. `lock` is the journal's, if this process already holds it."""
    if not is_main_process():
        out.begin(directory.path)
        yield Recorder(JournalWriter(Path(os.devnull), _header(config, directory)))
        return
    from fmstune.run.tracker_runs import continue_runs

    tracking = directory.path / TRACKING_DIR
    tracking.mkdir(parents=True, exist_ok=True)
    earlier = 0
    if directory.checkpoint is not None and not (tracking / JOURNAL_NAME).exists():
        earlier = continue_runs(directory.checkpoint, directory.path, config.tracking.trackers)
    header, known = _header(config, directory, earlier), highest_known(directory.path)
    if original := original_of(directory.path):
        become_own_run(directory.path, header)
        out.say("copy", f"of {original}, which still exists: continues as a separate run, also in trackers")
    process = os.getpid()
    ending = StopSignals()
    ending.watch()
    ending.hold()  # a journal that was started also gets an end
    try:
        journal = JournalWriter(tracking / JOURNAL_NAME, header, on_problem=out.warn, known=known, lock=lock)
    except BaseException:
        ending.leave()
        raise
    recorder = Recorder(journal)
    status: Status = "failed"
    error: str | None = None
    try:
        record_place(directory.path, journal.header.id)
        out.begin(directory.path)
        fleet.start_delivery(directory.path, tend=journal.tend)
        ending.release()
        with active(recorder):
            # Before anything else: without this mark, events after a status are leftovers of that run.
            if directory.checkpoint is not None or journal.last_seq > journal.header.after:
                recorder.resumed(directory.step, labels_of(header))
            _track_identity(recorder, config)
            yield recorder
        ending.hold()
        status = "finished"
    except BaseException as stopped:
        ending.hold()
        status, error = _status_of(stopped)
        if status == "failed" and os.getpid() == process:
            _write_error_log(directory.path, redactor)
        raise
    finally:
        if os.getpid() != process:
            _exit_child()
        in_process = list(recorder.in_process)
        with contextlib.ExitStack() as steps:  # in reverse order; a failing step does not stop the others
            steps.callback(ending.leave)
            steps.enter_context(active(recorder))  # to count metrics that threads still track
            steps.callback(_guarded, out, "summarising the run", out.end, directory.path)
            # Only the summary is left: a signal during it (from torchrun, which ends the other ranks) would
            # hide how the run ended.
            steps.callback(ending.hold)
            steps.callback(
                _guarded,
                out,
                "reporting the deliveries",
                _show,
                directory.path,
                journal,
                out,
                config.tracking.trackers,
            )
            steps.callback(_guarded, out, "releasing links", release_links, directory.path, fleet.trackers)
            for tracker in in_process:
                steps.callback(_guarded, out, "saving a tracker's state", tracker.save)
            steps.callback(_guarded, out, "closing the journal", journal.close)
            steps.callback(_guarded, out, "closing the trackers", fleet.finish)
            steps.callback(out.phase, "delivering")
            steps.callback(ending.release)
            steps.callback(_guarded, out, "recording the end", recorder.close, status, error)


@contextlib.contextmanager
def sampled(
    config: RunConfig, directory: RunDirectory, recorder: Recorder, out: RunConsole
) -> Iterator[None]:
    """Sample the machine during the run, only on rank zero: other ranks may share the machine."""
    interval = config.resources.interval if is_main_process() else 0

    def record(figures: Mapping[str, float]) -> None:
        # Until the training reports its step, use that of the checkpoint.
        recorder.track_sample(figures, SYSTEM, directory.step if recorder.step is None else recorder.step)

    with scanned(record, interval, directory.path, out.warn):
        yield


def _guarded(out: RunConsole, what: str, step: Callable[..., None], *arguments: Any) -> None:
    """Run one step of a run's end: its errors must not fail a training that succeeded."""
    try:
        step(*arguments)
    except Exception as error:
        out.warn(f"{what} failed: {type(error).__name__}: {error}")


def _show(directory: Path, journal: JournalWriter, out: RunConsole, used: Collection[str]) -> None:
    for line in reports(directory, used):
        out.say(line.tracker, line.line())
        for change in line.adapted():
            out.say("", change)
    if lost := journal.unrecorded - journal.late:
        out.warn(f"{counted(lost, 'event')} could not be written to the journal, and are lost")
    if journal.late:
        out.warn(
            f"{counted(journal.late, 'event')} arrived after the end of the training, from a thread or child "
            "process that was still running: not recorded. End it in on_train_end"
        )
    if journal.lost:
        out.warn(
            f"{counted(journal.lost, 'event')} of the damaged journal could not be recovered, and are lost"
        )


def _exit_child() -> NoReturn:
    """Exit a forked child that leaves the training: only its parent does the rest."""
    error = sys.exc_info()[1]
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def report_resumed(directory: RunDirectory, fleet: Fleet, out: RunConsole) -> None:
    """Report that the run is resumed, and how trackers handle steps that were logged before."""
    for why in directory.unusable:
        out.warn(why)
    if directory.checkpoint is None:
        return
    policies = [f"{policy} in {name}" for name, policy in fleet.repeated_steps().items()]
    again = f"; steps logged before are {', '.join(policies)}" if policies else ""
    out.say("resume", f"from {directory.checkpoint}{again}")


def _status_of(stopped: BaseException) -> tuple[Status, str | None]:
    from fmstune.launch.rank import cause_of_lost_peer, failure_of_another

    if isinstance(stopped, (Interrupted, KeyboardInterrupt)):
        another = failure_of_another()  # after which torchrun sends SIGTERM to this process
        return ("failed", another) if another else ("interrupted", None)
    cause = cause_of_lost_peer(str(stopped))
    if cause is not None:
        return "failed", cause
    first = next(iter(str(stopped).strip().splitlines()), "")
    return "failed", f"{type(stopped).__name__}: {first}" if first else type(stopped).__name__


def _track_identity(recorder: Recorder, config: RunConfig) -> None:
    """Track the run's identity: the user's params, the resolved configuration, the versions, the commit."""
    if config.params:
        recorder.set_params(config.params, "params")
    recorder.set_params({k: v for k, v in to_mapping(config).items() if k != "params"}, "config")
    recorder.set_params(provenance.packages(), "packages")
    commit = provenance.git(Path.cwd())
    if commit:
        recorder.set_params(commit, "git")


def in_process_callbacks(
    recorder: Recorder, in_process: list[Job], directory: Path, seconds: float, out: RunConsole
) -> list[Any]:
    """The callbacks of trackers that must run in this process, each in a guard with a timeout of `seconds`
    per call. They also receive everything recorded before."""
    if not in_process:
        return []
    from fmstune.delivery.in_process import GuardedTracker
    from fmstune.trackers.compat import build_tracker

    callbacks = []
    for job in in_process:
        build = functools.partial(build_tracker, job.reference, job.name, job.options)
        tracker = GuardedTracker(job, build, out.warn, seconds=seconds)
        callbacks.append(tracker.attach(directory, recorder.journal))
        recorder.in_process.append(tracker)
    return callbacks


def reports(directory: Path, used: Collection[str] | None = None) -> list[DeliveryReport]:
    """The state of each delivery of a run, even if its files are damaged; in-process trackers have none.
    `used` are the trackers that this process delivers to: the others got nothing from it, and did not run out
    of time."""
    if not is_main_process():
        return []
    lines = []
    for ledger in all_ledgers(directory):
        try:
            lines += report(directory, [ledger.tracker])
        except (OSError, JournalError) as error:
            known = DeliveryReport(ledger.tracker, ledger.delivered, ledger.total, "behind", error=str(error))
            lines.append(dataclasses.replace(known, run_id=ledger.run_id, url=ledger.url))
    if used is None:
        return lines
    return [
        line
        if line.tracker in used or line.state == "complete"
        else dataclasses.replace(line, error="not used by this resume", since=None)
        for line in lines
    ]


def redactor_of(config: RunConfig) -> Redactor:
    """The process's redactor, after adding the secrets of this configuration."""
    know_secrets(config_secrets(to_mapping(config)))
    return process_redactor()


def _header(config: RunConfig, directory: RunDirectory, after: int = 0) -> Header:
    run, found = config.run, config.run.name or config.training.get("run_name")
    return Header(
        uuid.uuid4().hex,
        hide(found or directory.path.resolve().name),
        time.time(),
        str(Path.cwd()),
        after,
        None if run.group is None else hide(run.group),
        tuple(map(hide, run.tags)),
        None if run.notes is None else hide(run.notes),
    )


def _write_error_log(directory: Path, redactor: Redactor) -> None:
    with contextlib.suppress(OSError):  # the disk may have failed; the error itself is printed
        (directory / ERROR_LOG).write_text(redactor.text(traceback.format_exc()), encoding="utf-8")
