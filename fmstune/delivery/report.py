"""The progress of a run's delivery, per tracker, for people and programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fmstune.delivery.delivered_files import progress
from fmstune.delivery.journal.events import later_kinds
from fmstune.delivery.journal.reader import JournalReader, damaged_at_end, last_seq
from fmstune.delivery.ledger import Ledger, State, damage, highest_known, load_ledger
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.trackers.records import utf8
from fmstune.trackers.values.changes import for_people

DELIVERED_AGAIN = "all of it was delivered again, as the run there did not hold it"


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """One tracker's line of the summary: `delivered` of `total` events, and what to do about the rest.
    `artifacts` is how much of the delivered files it has."""

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
    artifacts: str | None = None

    def line(self) -> str:
        """The report as one line, without the tracker's name."""
        counts = f"{self.delivered}/{self.total}" if self.total or not self.error else ""  # unknown
        parts = [each for each in (counts, self.artifacts) if each]
        if self.error:
            moment = f" ({time.strftime('%H:%M:%S', time.localtime(self.since))})" if self.since else ""
            parts.append(f"{' '.join(self.error.split())}{moment}")
        if self.remedy:
            parts.append(f"→ {self.remedy}")
        parts += [part for part in (self.url, self.note) if part]
        return utf8(" · ".join(parts))

    def adapted(self) -> list[str]:
        """What the tracker stores differently from the journal, or not at all, one line each."""
        return [utf8(f"adapted: {' '.join(change.split())}") for change in for_people(self.changes)]


def report(directory: Path, trackers: Sequence[str]) -> list[DeliveryReport]:
    """The state of each tracker's delivery of the run in `directory`."""
    if not trackers:
        return []
    path = directory / TRACKING_DIR / JOURNAL_NAME
    after = JournalReader(path).header.after
    ledgers = [
        load_ledger(directory, name) or Ledger(name, error=damage(directory, name)) for name in trackers
    ]
    known = highest_known(directory)
    # After the ledgers: of a run that is going, it has each event before they know it.
    written = max(last_seq(path), after)
    # A truncated journal has fewer events than its trackers know: what it lost is not delivered.
    last = max(written, known)
    lines = [_of(ledger, written, last, after, directory) for ledger in ledgers]
    if damaged := damaged_at_end(path):  # without a number, they are in no total
        ends = (
            "the journal ends with a damaged line"
            if damaged == 1
            else (f"the journal ends with {damaged} damaged lines")
        )
        lines = [replace(line, note=" · ".join(filter(None, (line.note, ends)))) for line in lines]
    return lines


def _of(ledger: Ledger, written: int, last: int, after: int, directory: Path) -> DeliveryReport:
    total = last - after
    reached = min(max(ledger.safe_delivered, after), last)  # a kill could still lose the rest
    suspicion = ledger.suspicion
    delivered = reached - after - suspicion.set_aside(reached) - ledger.missing.within(after + 1, reached)
    complete = delivered == total and ledger.closed
    waiting = reached < last or bool(suspicion.suspects) or not ledger.closed
    state: State = "complete" if complete else "behind" if waiting else "failed"
    return DeliveryReport(
        tracker=ledger.tracker,
        delivered=delivered,
        total=total,
        state=state,
        run_id=ledger.run_id,
        url=ledger.url,
        error=None if complete else _why(ledger, waiting, max(written, reached), last),
        since=None if complete else ledger.error_time,
        remedy=None if complete else f"fmstune trackers sync {directory}",
        changes=ledger.changes,
        note=_note(ledger, complete),
        artifacts=progress(directory, ledger),
    )


def _note(ledger: Ledger, complete: bool) -> str | None:
    again = ledger.moved or (DELIVERED_AGAIN if ledger.begun_again and complete else "")
    return " · ".join(part for part in (ledger.note, again) if part) or None


def _why(ledger: Ledger, waiting: bool, within_reach: int, last: int) -> str:
    """Why something is missing: refused events, damaged lines, and what keeps the rest from arriving. Events
    after `within_reach` are no longer in the journal."""
    reasons = []
    if within_reach < last:
        lost = f"{within_reach + 1} to {last} are" if within_reach + 1 < last else f"{last} is"
        reasons.append(f"event{'s' if within_reach + 1 < last else ''} {lost} not in the journal any more")
    if sentence := ledger.suspicion.sentence():
        reasons.append(sentence)
    if ledger.missing:
        reasons.append(_unread(ledger))
    if waiting and (ledger.error is None or ledger.error != sentence):
        suspects = ledger.suspicion.unconfirmed
        cause = ledger.suspicion.cause(suspects.first) if suspects else "not finished in time"
        never = ledger.run_id is None and not ledger.delivered
        reasons.append(ledger.error or ("never reached" if never else cause))
    return "; ".join(reasons)


def _unread(ledger: Ledger) -> str:
    count, first = len(ledger.missing), ledger.missing.first
    if not ledger.later:
        if count == 1:
            return f"event {first} is damaged or missing in the journal"
        return f"{count} events are damaged or missing in the journal, {first} for one"
    lines = "line" if count == 1 else "lines"
    return f"{count} {lines} of the journal (event {first}) cannot be read: {later_kinds(ledger.later)}"
