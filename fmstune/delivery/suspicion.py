"""The events that a tracker failed on: is the event at fault, the SDK, or the service?

One failure cannot tell. These rules can, and each costs a bounded number of attempts:

- An event is a *suspect* from its first failure on, and the delivery continues after it.
- A failure counts against the event (a *strike*) only when the tracker has accepted another event after it:
  then the service works. After `MOST_STRIKES` the event is *refused*. In an outage nothing is accepted, so
  nothing is refused, however the SDK reports the outage.
- Of consecutive failures in one process, only the first *leads*: it may have broken the SDK for the others.
  A fresh process starts with suspects that have not led yet.

Everything here is a value: a transition returns the next `Suspicion`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fmstune.delivery.spans import EMPTY, Spans, spans_from_json, spans_of

How = Literal["raised", "outage", "died"]
"""How the tracker failed: an exception, an `OSError` (most often an outage), or the end of the process."""

MOST_ATTEMPTS = 3
"""After this many failures, an event that blocks the others is skipped."""
MOST_STRIKES = 2
MOST_CAUSES = 50
_MOST_GIVEN = 1000


@dataclass(frozen=True, slots=True)
class Mark:
    """The state of a suspect. `fails` and `leads` count up to `MOST_ATTEMPTS`, since the last strike;
    `open`: nothing has been accepted since the last failure."""

    fails: int = 0
    leads: int = 0
    strikes: int = 0
    open: bool = True
    how: How = "raised"

    @property
    def unproven(self) -> bool:
        """Whether it only failed after another event, which may have broken the SDK."""
        return self.open and not self.leads

    @property
    def exhausted(self) -> bool:
        """Whether the event has had its fair attempts, at least one of them in a process that no other
        event can have broken."""
        return self.fails >= MOST_ATTEMPTS and self.leads >= 1


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The suspects by their marks, the refused events, and the first cause of each of the first `MOST_CAUSES`
    of them. `rounds` counts the consecutive processes that ended without an accepted event. `given` counts
    the values of an event that the tracker had taken before it failed on the next one."""

    suspects: tuple[tuple[Mark, Spans], ...] = ()
    refused: Spans = EMPTY
    causes: tuple[tuple[int, str], ...] = ()
    rounds: int = 0
    given: tuple[tuple[int, int], ...] = ()

    # -- questions ----------------------------------------------------------------------------

    def mark(self, seq: int) -> Mark | None:
        """The mark of the event `seq`; `None` if it is not a suspect."""
        return next((mark for mark, events in self.suspects if seq in events), None)

    @property
    def last(self) -> int:
        """The highest number of a suspected or refused event; 0 when there is none."""
        return max(self.refused.last, *(events.last for _, events in self.suspects), 0)

    def set_aside(self, last: int) -> int:
        """How many events up to the number `last` are suspected or refused."""
        return self.between(1, last)

    def between(self, first: int, last: int) -> int:
        """How many of the events from `first` to `last` are suspected or refused."""
        every = (self.refused, *(events for _, events in self.suspects))
        return sum(events.within(first, last) for events in every)

    @property
    def unproven(self) -> Spans:
        """Suspects that only failed after another one: a fresh process starts with them."""
        return self._those(lambda mark: mark.unproven)

    @property
    def confirmed(self) -> Spans:
        """Suspects to retry now, since the tracker has accepted others after them."""
        return self._those(lambda mark: not mark.open)

    @property
    def unconfirmed(self) -> Spans:
        """Suspects after whose last failure nothing has been accepted."""
        return self._those(lambda mark: mark.open)

    @property
    def waiting(self) -> Spans:
        """Suspects without a strike whose failure was an exception: an outage would look the same."""
        return self._those(lambda mark: mark.open and mark.how != "died")

    def worth_retrying(self, most_rounds: int) -> bool:
        """Whether a fresh process may progress at once: some suspect has not had its fair attempts."""
        leads = [mark.leads for mark, _ in self.suspects if mark.open]
        return self.rounds < most_rounds and any(count < MOST_ATTEMPTS for count in leads)

    def cause(self, seq: int) -> str:
        """The first reason why the event was not accepted."""
        return dict(self.causes).get(seq, "see the tracker's log")

    def values_given(self, seq: int) -> int:
        """How many values of the event the tracker has taken already."""
        return dict(self.given).get(seq, 0) if self.given else 0

    def sentence(self) -> str | None:
        """The refused events in words: how many, the first of them, and its first cause."""
        if not self.refused:
            return None
        first, count = self.refused.first, len(self.refused)
        if count == 1:
            return f"event {first} was refused: {self.cause(first)}"
        return f"{count} events were refused, the first of them event {first}: {self.cause(first)}"

    # -- transitions --------------------------------------------------------------------------

    def failed(self, seq: int, cause: str, how: How, *, leads: bool, given: int = 0) -> Suspicion:
        """The tracker failed on the event; `leads`: it was the first failure of its process, or since another
        event was accepted. `given` values of it are not to be tracked again."""
        before = self.mark(seq) or Mark()
        mark = dataclasses.replace(
            before,
            fails=min(before.fails + 1, MOST_ATTEMPTS),
            leads=min(before.leads + leads, MOST_ATTEMPTS),
            open=True,
            how=how,
        )
        causes = self.causes
        if len(causes) < MOST_CAUSES and all(known != seq for known, _ in causes):
            causes = tuple(sorted((*causes, (seq, cause))))
        known = dict(self.given)
        taken = known | ({seq: given} if given and len(known) < _MOST_GIVEN else {})
        left = dataclasses.replace(self._without(seq), causes=causes, given=tuple(taken.items()))
        return left._with(mark, spans_of([seq]))

    def accepted(self, seqs: Collection[int]) -> Suspicion:
        """The tracker has accepted these events after all."""
        left = self
        for seq in seqs:
            left = left._without(seq)
        causes = tuple(entry for entry in self.causes if entry[0] not in seqs)
        given = tuple(entry for entry in self.given if entry[0] not in seqs)
        return dataclasses.replace(left, causes=causes, given=given) if seqs else self

    def proved(self, but: Collection[int] = ()) -> Suspicion:
        """The tracker has accepted another event after the failure of every suspect, except those in
        `but`."""
        proved = dataclasses.replace(self, suspects=(), rounds=0)
        for mark, events in self.suspects:
            if not mark.open:
                proved = proved._with(mark, events)
                continue
            kept = spans_of(seq for seq in but if seq in events)
            for seq in kept:
                events = events.without(seq)
            proved = proved._with(mark, kept)
            if mark.strikes + 1 >= MOST_STRIKES:
                proved = dataclasses.replace(proved, refused=proved.refused.with_all(events))
            else:
                proved = proved._with(Mark(0, 0, mark.strikes + 1, False, mark.how), events)
        return proved

    def refuse(self, seq: int, cause: str) -> Suspicion:
        """The event can no longer be delivered; the reason for its delay stays its cause."""
        known = self if self.mark(seq) else self.failed(seq, cause, "raised", leads=False)
        return dataclasses.replace(known._without(seq), refused=self.refused.with_span(seq, seq))

    def forgiven(self, in_order: bool) -> Suspicion:
        """The tracker may have been fixed: every event gets another chance, a refused one exactly one. With
        `in_order`, suspects that had their fair attempts keep them, so that one sync continues where the last
        one stopped."""
        again = Suspicion(causes=self.causes, given=self.given)._with(
            Mark(strikes=MOST_STRIKES - 1, open=False), self.refused
        )
        for mark, events in self.suspects:
            fails, leads = (mark.fails, mark.leads) if in_order and mark.exhausted else (0, 0)
            again = again._with(Mark(fails, leads, mark.strikes, mark.open), events)
        return again

    def ended(self) -> Suspicion:
        """A process ended before it had delivered everything."""
        return dataclasses.replace(self, rounds=self.rounds + 1)

    # -- as JSON ------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The value as JSON for the ledger."""
        suspects = [
            {**dataclasses.asdict(mark), "events": events.to_text()} for mark, events in self.suspects
        ]
        return {
            "suspects": suspects,
            "refused": self.refused.to_text(),
            "causes": {str(seq): cause for seq, cause in self.causes},
            "rounds": self.rounds,
            "given": {str(seq): count for seq, count in self.given},
        }

    def _those(self, wanted: Any) -> Spans:
        found = Spans()
        for mark, events in self.suspects:
            if wanted(mark):
                found = found.with_all(events)
        return found

    def _without(self, seq: int) -> Suspicion:
        left = tuple((mark, events.without(seq)) for mark, events in self.suspects)
        return dataclasses.replace(
            self,
            suspects=tuple(entry for entry in left if entry[1]),
            refused=self.refused.without(seq),
        )

    def _with(self, mark: Mark, events: Spans) -> Suspicion:
        if not events:
            return self
        groups = dict(self.suspects)
        groups[mark] = groups.get(mark, Spans()).with_all(events)
        return dataclasses.replace(self, suspects=tuple(groups.items()))


NOTHING_SUSPECTED = Suspicion()


def suspicion_from_json(raw: Mapping[str, Any]) -> Suspicion:
    """What `Suspicion.to_json` wrote. Raises `ValueError`, `TypeError`, `KeyError` or `AttributeError` for
    anything else."""
    suspects = {}
    for group in raw["suspects"]:
        fails, leads, strikes = (group[key] for key in ("fails", "leads", "strikes"))
        if any(type(count) is not int or count < 0 for count in (fails, leads, strikes)):
            raise ValueError(f"not a mark: {group!r}")
        if group["how"] not in get_args(How):
            raise ValueError(f"not a mark: {group!r}")
        suspects[Mark(fails, leads, strikes, bool(group["open"]), group["how"])] = spans_from_json(
            group["events"]
        )
    causes = tuple(sorted((int(seq), str(cause)) for seq, cause in raw["causes"].items()))
    given = tuple((int(seq), int(count)) for seq, count in raw.get("given", {}).items())
    return Suspicion(
        tuple(suspects.items()), spans_from_json(raw["refused"]), causes, int(raw["rounds"]), given
    )


def suspicion_of_earlier_version(raw: Mapping[str, Any]) -> Suspicion:
    """The suspicion in a ledger of fmstune 0.1 before 2026-11-26: numbers of refused events, and the one
    event that the delivery was stuck on. Raises like `suspicion_from_json`."""
    found = Suspicion(refused=spans_from_json(raw.get("refused", ())))
    error = str(raw.get("error") or "")
    head, _, cause = error.partition(" was refused: ")
    number = head.removeprefix("event ")
    if cause and number.isascii() and number.isdigit():
        found = dataclasses.replace(found, causes=((int(number), cause),))
    stuck_at, attempts = raw.get("stuck_at", 0), raw.get("attempts", 0)
    if not (type(stuck_at) is type(attempts) is int) or stuck_at < 0 or attempts < 0:
        raise ValueError("stuck_at")
    if stuck_at and stuck_at not in found.refused:
        died = raw.get("trying") == stuck_at
        count = min(attempts, MOST_ATTEMPTS)
        mark = Mark(count, count, how="died" if died else "outage")
        found = dataclasses.replace(
            found._with(mark, spans_of([stuck_at])),
            causes=tuple(sorted({**dict(found.causes), stuck_at: error}.items())),
        )
    return found
