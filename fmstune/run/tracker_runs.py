"""Store the ledgers in checkpoints, so that a run resumed from one continues the same run of each tracker."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from fmstune.delivery.journal.reader import last_seq
from fmstune.delivery.ledger import Ledger, all_ledgers, record_last
from fmstune.delivery.recorder import Recorder
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR

_GAP = 1_000_000


def ledger_copier(directory: Path, recorder: Recorder) -> Callable[[Path], None]:
    """Return a function that copies the ledgers of the run in `directory` into a checkpoint, with the number
    of its last event; those of in-process trackers are brought up to date first."""

    def copy(checkpoint: Path) -> None:
        for tracker in recorder.in_process:
            with contextlib.suppress(OSError):  # as below
                tracker.save()
        copy_ledgers(directory, checkpoint)
        with contextlib.suppress(OSError):
            record_last(checkpoint, recorder.journal.last_seq)

    return copy


def continue_runs(checkpoint: Path, directory: Path, trackers: Collection[str]) -> int:
    """Let a new run in `directory` continue the tracker runs of its `trackers` that are recorded in another
    run's checkpoint. Returns the number from which its events are counted.

    The numbers of events keep rising within each tracker run: W&B and others tell new events from old ones by
    them.
    """
    journal = checkpoint.parent / TRACKING_DIR / JOURNAL_NAME
    # Prefer the other run's own ledgers: a tracker may have been opened only after the checkpoint.
    ledgers = all_ledgers(checkpoint.parent if journal.exists() else checkpoint)
    if not ledgers:
        return 0
    # Without the other run's journal, the number of events after the checkpoint is unknown: leave a wide gap.
    number = last_seq(journal) if journal.exists() else max(each.delivered for each in ledgers) + _GAP
    for ledger in (each for each in ledgers if each.tracker in trackers):
        Ledger(
            tracker=ledger.tracker,
            reference=ledger.reference,
            options=ledger.options,
            cwd=ledger.cwd,
            place=ledger.place,
            run_id=ledger.run_id,
            url=ledger.url,
            delivered=number,
            total=number,
            safe_delivered=number,
            closed=True,
        ).save(directory)
    return number


def copy_ledgers(source: Path, target: Path) -> None:
    """Copy the ledgers of a run or checkpoint to another. Ignores those that cannot be copied: tracking never
    fails a checkpoint, and the run's own ledgers stay."""
    with contextlib.suppress(OSError):
        for ledger in (source / TRACKING_DIR).glob("*.json"):
            with contextlib.suppress(OSError):
                (target / TRACKING_DIR).mkdir(exist_ok=True)
                shutil.copyfile(ledger, target / TRACKING_DIR / ledger.name)
