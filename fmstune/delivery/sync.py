"""Deliver a run after it has ended: what an outage left behind, or the whole run to another tracker."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fmstune.config.load.values import dotted
from fmstune.config.paths.runs import nearest_run
from fmstune.delivery.delivered_files import release_links
from fmstune.delivery.journal.reader import JournalError, JournalReader, is_being_written, last_seq, writer
from fmstune.delivery.ledger import Ledger, all_ledgers, ledger_path, load_ledger
from fmstune.delivery.place import moved_with, original_of
from fmstune.delivery.report import DELIVERED_AGAIN, DeliveryReport, report
from fmstune.delivery.shipping.crashes import can_progress, note_death
from fmstune.delivery.shipping.main import EXIT_AGAIN, EXIT_BUSY, EXIT_DONE
from fmstune.delivery.shipping.process import Job, ShipperProcess, is_of_environment
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import holds_redacted
from fmstune.system import locks
from fmstune.system.files import NotAFile, is_writable
from fmstune.trackers.records import TrackerError

_STALLED_SECONDS = 120.0
_POLL_SECONDS = 0.1
_NOT_LOOKED = "not checked whether it is still there"

Progress = Callable[[str, int, int], None]
"""Called with a tracker's name, the events delivered so far, and how many there are."""


def sync(
    directory: Path,
    to: str | None,
    options: Mapping[str, Mapping[str, Any]],
    reference: Callable[[str], str],
    *,
    check_within: float = 10.0,
    progress: Progress = lambda name, delivered, total: None,
) -> list[DeliveryReport]:
    """Deliver what is missing of the run in `directory` to the trackers it was tracked with, or all of it to
    the tracker `to`. What was delivered before is not delivered again, unless the tracker's storage can be
    checked and has lost the run.

    `options` are the trackers' options here and now; they override those the run was tracked with.
    Raises `JournalError` when the directory contains no run.
    """
    path = directory / TRACKING_DIR / JOURNAL_NAME
    if not path.exists():
        raise JournalError(
            f"{directory} holds no run of fmstune: there is no {TRACKING_DIR}/{JOURNAL_NAME} in it."
            f"{nearest_run(directory)}"
        )
    try:
        JournalReader(path)  # raises if it is not one
    except (NotAFile, IsADirectoryError) as error:
        raise JournalError(f"{path} is not a journal: it is not a file.") from error
    names = [to] if to else [ledger.tracker for ledger in all_ledgers(directory)]
    if is_being_written(path):
        going = f"the run is still going, in {writer(path)}"
        return [
            dataclasses.replace(line, error=going, remedy="sync it when it has ended")
            if line.state != "complete" else line
            for line in report(directory, names)
        ]  # fmt: skip
    lines = []
    original = original_of(directory)
    for name in names:
        (line,) = report(directory, [name])
        ledger = load_ledger(directory, name)
        chosen = {**(ledger.options if ledger else {}), **options.get(name, {})}
        lacking = [key for key, value in chosen.items() if holds_redacted(value)]
        copied = original is not None and _has_run_of(original, ledger)
        where = (ledger.reference if ledger else "") or reference(name)
        # The directory that the run was tracked from; a new tracker starts from the current one.
        cwd = _tracked_from(directory, ledger)
        place = ledger.place if ledger else None
        job = Job(name, where, chosen, cwd, ledger.module_path if ledger else "", place or {})
        noted = None
        if line.state == "complete" and line.total:
            looked = not copied and not lacking and _check_storage(directory, job, check_within)
            (line,) = report(directory, [name])
            noted = DELIVERED_AGAIN
            if line.state == "complete":  # and how it got there does not matter
                noted = None if looked else _NOT_LOOKED
                line = dataclasses.replace(line, note=ledger.note if ledger else None)
        if line.state != "complete":
            if copied:
                assert original is not None
                line = _copied(line, original)
            elif lacking:
                line = _without_option(line, lacking[0])
            elif not is_writable(directory / TRACKING_DIR):
                line = _unwritable(line, directory / TRACKING_DIR)
            else:
                line = _deliver(directory, job, reference, check_within, progress)
        moved = (load_ledger(directory, name) or Ledger(name)).moved
        if noted == DELIVERED_AGAIN and moved:  # its old location was not checked
            noted = None
        if noted and line.state == "complete" and noted != line.note:
            line = dataclasses.replace(line, note=" · ".join(filter(None, (line.note, noted))))
        lines.append(line)
    release_links(directory)
    return lines


def _check_storage(directory: Path, job: Job, seconds: float) -> bool:
    """Whether the tracker's storage was seen to hold a run that was fully delivered. It may have been removed
    since: the ledger then says that everything is to be delivered again."""
    shipper = ShipperProcess(job, check_within=None)
    try:
        shipper.ship(directory, follow=False, close_timeout=0.0, look=True)
        return shipper.wait(2 * seconds + 1) == EXIT_DONE  # as long again for importing an SDK
    finally:
        shipper.kill()


def _tracked_from(directory: Path, ledger: Ledger | None) -> str | None:
    """The current path of the folder that a run was tracked from; `None` if it no longer exists."""
    if ledger is None or not ledger.cwd:
        return None
    if Path(ledger.cwd).is_dir():
        return ledger.cwd
    moved = moved_with(directory, Path(ledger.cwd))
    return None if moved is None else str(moved)


def _has_run_of(original: Path, ledger: Ledger | None) -> bool:
    """Whether a copy's ledger belongs to the run that its original has in the tracker: a copy may have been
    delivered to a tracker that the original was not."""
    if ledger is None or ledger.run_id is None:
        return False
    there = load_ledger(original, ledger.tracker)
    return there is not None and there.run_id == ledger.run_id


def _copied(line: DeliveryReport, original: Path) -> DeliveryReport:
    """A delivery from a copy would go into the run of the original, which may have continued."""
    error = f"its folder is a copy of {original}, whose run in {line.tracker} this is"
    remedy = f"fmstune trackers sync {original}; a resumed copy is a run of its own"
    return dataclasses.replace(line, error=error, remedy=remedy, since=None)


def _unwritable(line: DeliveryReport, folder: Path) -> DeliveryReport:
    """Without a record of its progress, a delivery that is repeated would deliver events twice."""
    error = f"{folder} is not writable, and a delivery records its progress there"
    return dataclasses.replace(line, error=error, remedy="make it writable, then sync again", since=None)


def _without_option(line: DeliveryReport, option: str) -> DeliveryReport:
    """Without the option the tracker would deliver to another location, or as another user."""
    key = dotted(["trackers", line.tracker, option])
    error = f"its option {option} held a secret, which the ledger does not keep"
    return dataclasses.replace(line, error=error, remedy=f"give it again: --set {key}=…", since=None)


def _deliver(
    directory: Path, job: Job, reference: Callable[[str], str], check_within: float, progress: Progress
) -> DeliveryReport:
    shipper, earlier = ShipperProcess(job, check_within=check_within), ""
    try:
        check = shipper.check()
        if check.state == "broken" and (now := _class_now(job, reference)) is not None:
            shipper.kill()
            job, earlier = dataclasses.replace(job, reference=now), job.reference
            shipper = ShipperProcess(job, check_within=check_within)
            check = shipper.check()
        if not check.ok:
            (line,) = report(directory, [job.name])
            remedy = _loading_remedy(job, check.detail) if check.state == "broken" else ""
            if check.state == "bad_option" and job.options:
                ledger = ledger_path(directory, job.name)
                remedy = f"{check.remedy}; those that the run was tracked with are in {ledger}"
            return dataclasses.replace(line, error=check.detail, remedy=remedy or check.remedy, since=None)
        code = _ship(directory, shipper, progress)
    finally:
        shipper.kill()
    (line,) = report(directory, [job.name])
    if earlier:
        note = f"its class was {earlier}, and is now {job.reference}"
        line = dataclasses.replace(line, note=" · ".join(filter(None, (line.note, note))))
    if code == EXIT_BUSY:
        holder = locks.holder(ledger_path(directory, job.name).with_suffix(".lock"))
        busy = f"{locks.describe(holder)} is delivering it right now"
        return dataclasses.replace(line, error=busy, remedy="wait for it, then sync again")
    if code is None:
        return dataclasses.replace(line, error=f"no progress for {_STALLED_SECONDS:.0f} s, given up")
    return line


def _class_now(job: Job, reference: Callable[[str], str]) -> str | None:
    """The class that has the tracker's name now, if it is another one than when the run was tracked: an
    upgrade of its package may have renamed or moved it."""
    try:
        now = reference(job.name)
    except TrackerError:  # it is not installed, or several packages have it
        return None
    return None if now == job.reference else now


def _loading_remedy(job: Job, detail: str) -> str:
    """The remedy for a plug-in's class that is no longer where it was, if that is what `detail` says."""
    module, _, name = job.reference.rpartition(":")
    if module.endswith(".py"):
        gone = not Path(module).exists() or f"has no attribute '{name}'" in detail
        return f"put the class {name} back into {module}, where the run was tracked with it" if gone else ""
    package = re.escape(module.partition(".")[0])
    if not re.search(rf"No module named '{package}['.]", detail):  # but one that it imports
        return ""
    if is_of_environment(job.module_path):
        return f"install the package of the tracker {job.name} in this environment"
    folder = job.module_path or job.cwd
    if not folder:
        return ""
    return (
        f"put the module back into {folder}, where the run was tracked with it, or its folder into PYTHONPATH"
    )


def _ship(directory: Path, shipper: ShipperProcess, progress: Progress) -> int | None:
    """Deliver with this process, and with further ones as long as they may progress; `None` if the last one
    hung."""
    job = shipper.job
    forgive = True  # the user may have fixed the tracker
    died: Ledger | None = None
    while True:
        before = load_ledger(directory, job.name) or Ledger(job.name)
        if died is not None and died.careful > before.careful:
            before = died  # it could not be saved
        shipper.ship(directory, follow=False, close_timeout=0.0, forgive=forgive)
        forgive = False
        try:
            code = _wait(directory, shipper, progress)
        finally:
            shipper.kill()
        if (cause := shipper.death) is not None:
            died = note_death(directory, job.name, cause)
            if not can_progress(directory, before, died):
                return code
        elif code != EXIT_AGAIN:
            return code
        shipper = ShipperProcess(job, check_within=None)


def _wait(directory: Path, shipper: ShipperProcess, progress: Progress) -> int | None:
    total = last_seq(directory / TRACKING_DIR / JOURNAL_NAME)
    at, moved = (-1, -1), time.monotonic()
    while True:
        code = shipper.wait(_POLL_SECONDS)
        ledger = load_ledger(directory, shipper.job.name)
        if ledger and (ledger.delivered, ledger.trying) != at:
            at, moved = (ledger.delivered, ledger.trying), time.monotonic()
            progress(shipper.job.name, ledger.delivered, total)
        if code is not None:
            return code
        longest = _STALLED_SECONDS + (ledger.patience if ledger else 0)
        if time.monotonic() - moved > longest:
            shipper.kill(f"it did not return within {longest:.0f} s")
            return None
