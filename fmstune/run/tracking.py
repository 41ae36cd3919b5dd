"""The trackers of a run: check them before it, attach those of this process, and report what they got."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fmstune.access import remedy_of
from fmstune.config.inspect.dump import to_mapping
from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.delivery.journal.reader import JournalError
from fmstune.delivery.ledger import all_ledgers
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import DeliveryReport, report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.errors import ConfigError
from fmstune.launch.environment import is_main_process, quiet_libraries
from fmstune.launch.rank import needs_process_group
from fmstune.layout import TRACKING_DIR
from fmstune.resources.scanner import scanned
from fmstune.resources.source import SYSTEM
from fmstune.run.directory import RunDirectory
from fmstune.secrets.redaction import Redactor, config_secrets, know_secrets, process_redactor
from fmstune.system.files import is_writable
from fmstune.system.threads import set_threads
from fmstune.text import shown_path
from fmstune.trackers.records import Check, TrackerError
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
    found = f"{check.detail.rstrip('.')}. {check.remedy[:1].upper()}{check.remedy[1:]}".strip().rstrip(".")
    if not check.outage or config.tracking.strict:
        raise TrackerCheckFailed(f"the tracker {name} cannot be used: {found}.")
    out.warn(f"{name}: {found}. The run continues; the journal keeps what {name} misses.")


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


def report_resumed(directory: RunDirectory, fleet: Fleet, out: RunConsole) -> None:
    """Report that the run is resumed, and how trackers handle steps that were logged before."""
    for why in directory.unusable:
        out.warn(why)
    if directory.checkpoint is None:
        return
    policies = [f"{policy} in {name}" for name, policy in fleet.repeated_steps().items()]
    again = f"; steps logged before are {', '.join(policies)}" if policies else ""
    out.say("resume", f"from {directory.checkpoint}{again}")


def in_process_callbacks(
    recorder: Recorder, in_process: list[Job], directory: Path, seconds: float, out: RunConsole
) -> list[Any]:
    """The callbacks of trackers that must run in this process, each in a guard with a timeout of `seconds`
    per call. They also receive everything recorded before."""
    if not in_process:
        return []
    from fmstune.delivery.in_process import GuardedTracker
    from fmstune.trackers.registry import build_tracker

    callbacks = []
    for job in in_process:
        build = functools.partial(build_tracker, job.reference, job.name, job.options)
        tracker = GuardedTracker(job, build, out.warn, seconds=seconds)
        callbacks.append(tracker.attach(directory, recorder.journal))
        recorder.in_process.append(tracker)
    return callbacks


def reports(directory: Path, used: Collection[str] | None = None) -> list[DeliveryReport]:
    """The state of each delivery of a run, even if its files are damaged.
    `used` are the trackers that this process delivers to: the others got nothing from it, and did not run out
    of time."""
    if not is_main_process():
        return []
    folder, lines = directory / TRACKING_DIR, []
    try:
        if used is not None and _is_folder(folder) and not os.access(folder, os.R_OK | os.X_OK):
            raise PermissionError
        ledgers = all_ledgers(directory)
    except OSError as error:
        why = f" ({error.strerror})" if error.strerror else ""
        said = f"{shown_path(folder)} cannot be read{why}, so what it received is unknown"
        closed = DeliveryReport("", 0, 0, "behind", error=said, remedy=_opened_first(folder, directory))
        return [dataclasses.replace(closed, tracker=name) for name in used or () if name != "none"]
    for ledger in ledgers:
        try:
            lines += report(directory, [ledger.tracker])
        except (OSError, JournalError) as error:
            known = DeliveryReport(ledger.tracker, ledger.delivered, ledger.total, "behind", error=str(error))
            lines.append(dataclasses.replace(known, run_id=ledger.run_id, url=ledger.url))
    if used is None:
        return lines
    unknown = {*used} - {"none", *(line.tracker for line in lines)}
    lines += [_unrecorded(name, directory) for name in sorted(unknown)]
    return [
        line
        if line.state == "complete"
        else dataclasses.replace(line, error="not used by this resume", since=None)
        if line.tracker not in used
        else _with_closed_folder(line, folder, directory)
        for line in lines
    ]


def _unrecorded(tracker: str, directory: Path) -> DeliveryReport:
    """The line of a tracker without a ledger, as the disk had no room for one."""
    remedy = f"fmstune trackers sync {directory} --to {tracker}"
    error = "there is no record of what it received"
    return DeliveryReport(tracker, 0, 0, "behind", error=error, remedy=remedy)


def _with_closed_folder(line: DeliveryReport, folder: Path, directory: Path) -> DeliveryReport:
    """The line of an incomplete delivery, whose progress could not be recorded if its folder is not
    writable."""
    if is_writable(folder):
        return line
    what = "not writable" if _is_folder(folder) else "not there any more"
    error = f"{shown_path(folder)} is {what}, so it may have received more than is recorded"
    return dataclasses.replace(line, error=error, since=None, remedy=_opened_first(folder, directory))


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  (`Path.is_dir` raises on a disk that fails)


def _opened_first(folder: Path, directory: Path) -> str:
    if _is_folder(folder):
        access = remedy_of(PermissionError(errno.EACCES, ""), folder) or "make it writable"
    else:  # its disk was unmounted, say
        access = "bring it back"
    return f"{access}; then `fmstune trackers sync {directory}`"


def redactor_of(config: RunConfig) -> Redactor:
    """The process's redactor, after adding the secrets of this configuration."""
    know_secrets(config_secrets(to_mapping(config)))
    return process_redactor()
