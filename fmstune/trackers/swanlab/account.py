"""Which events of a run were sent to SwanLab's service, as the experiment's config says it. The service
says of each series what its last step is, and nothing else. What is said of it was seen with 0.10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fmstune.trackers.numbers_held import NumbersHeld

_SENT = "sent"


@dataclass
class Account(NumbersHeld):
    """The events that have surely arrived, and what is known of others.

    It is written before a batch is sent. Events up to `until` that are not held were under way when a process
    ended. Values are sent in the order of their events: those whose step is no later than the last one that
    the service has of their series have arrived, but for those of the events `late`, which came after later
    steps. Events after `again_after` log steps up to `again` once more: the run was resumed.
    """

    until: int = 0
    late: list[int] = field(default_factory=list)
    again: int = -1
    again_after: int = 0

    def announce(self, events: list[int], late: list[int]) -> None:
        """Note that these events are sent from now on, of which some are `late`."""
        self.until = max([self.until, *events])
        self.late = sorted({seq for seq in (*self.late, *late) if not self.has(seq)})

    def within(self, mark: Mapping[str, Any]) -> dict[str, Any]:
        """The mark of a run, with this in it."""
        return {**mark, _SENT: asdict(self)}


def account_of(mark: Any, run_id: str | None, after: int) -> Account | None:
    """The account that is in the mark of a run; `None` where it is of nobody, or of another run."""
    if not isinstance(mark, Mapping) or run_id is None or mark.get("run_id") != run_id:
        return None
    found = mark.get(_SENT)
    known = {each.name for each in fields(Account)}
    if not isinstance(found, Mapping) or set(found) != known:
        # A process has ended before it sent anything, or was one of an earlier version.
        return None
    account = Account(**found)
    account.last_event = max(account.last_event, after)
    return account
