"""How far the delivery of a run has come, tracker by tracker, for people and programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmstune.delivery.journal import FILE_NAME, JournalReader, last_seq
from fmstune.delivery.ledger import TRACKING_DIR, Ledger, State, load_ledger


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """One tracker's line of the summary: `delivered` of `total` events, and what to do about the rest."""

    tracker: str
    delivered: int
    total: int
    state: State
    run_id: str | None = None
    url: str | None = None
    error: str | None = None
    since: float | None = None
    remedy: str | None = None
    changes: tuple[str, ...] = ()
    note: str | None = None

    def line(self) -> str:
        """The report as one line, without the tracker's name."""
        parts = [f"{self.delivered}/{self.total}"]
        if self.error:
            moment = f" ({time.strftime('%H:%M:%S', time.localtime(self.since))})" if self.since else ""
            parts.append(f"{' '.join(self.error.split())}{moment}")
        if self.remedy:
            parts.append(f"→ {self.remedy}")
        parts += [part for part in (self.url, self.note) if part]
        return " · ".join(parts)


def report(directory: Path, trackers: Sequence[str]) -> list[DeliveryReport]:
    """The state of each tracker's delivery of the run in `directory`."""
    if not trackers:
        return []
    path = directory / TRACKING_DIR / FILE_NAME
    total, after = last_seq(path), JournalReader(path).header.after
    return [
        _of(load_ledger(directory, name) or Ledger(name), max(total, after), after, directory)
        for name in trackers
    ]


def _of(ledger: Ledger, last: int, after: int, directory: Path) -> DeliveryReport:
    total = last - after
    delivered = min(max(ledger.delivered, after), last) - after - len(ledger.refused) - len(ledger.missing)
    complete = delivered == total and ledger.closed
    state: State = "complete" if complete else "failed" if ledger.refused or ledger.missing else "behind"
    error = ledger.error
    if ledger.missing and error is None:
        count, first = len(ledger.missing), ledger.missing[0]
        error = f"{count} damaged line{'s' * (count > 1)} of the journal (event {first}) cannot be read"
    if not complete and error is None:
        error = "never reached" if ledger.run_id is None else "not finished in time"
    return DeliveryReport(
        tracker=ledger.tracker,
        delivered=delivered,
        total=total,
        state=state,
        run_id=ledger.run_id,
        url=ledger.url,
        error=None if complete else error,
        since=None if complete else ledger.error_time,
        remedy=None if complete else f"fmstune trackers sync {directory}",
        changes=ledger.changes,
        note=ledger.note,
    )
