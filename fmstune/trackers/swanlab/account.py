"""Which events of a run were sent to SwanLab's service, recorded in the experiment's config. The service only
reports the last step of each series. Observed with 0.10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fmstune.trackers.stored_numbers import StoredNumbers

_SENT = "sent"


@dataclass
class Account(StoredNumbers):
    """The events that have certainly arrived, and what is known of others.

    It is written before a batch is sent. Events up to `until` that are not held were in flight when a process
    ended. Values are sent in the order of their events: those whose step is not above the last step that the
    service has of their series have arrived, except those of the events `late`, which came after later
    steps. Events after `again_after` log steps up to `again` again: the run was resumed.
    """

    until: int = 0
    late: list[int] = field(default_factory=list)
    again: int = -1
    again_after: int = 0

    def announce(self, events: list[int], late: list[int]) -> None:
        """Record that these events are about to be sent, some of them `late`."""
        self.until = max([self.until, *events])
        self.late = sorted({seq for seq in (*self.late, *late) if not self.has(seq)})

    def within(self, mark: Mapping[str, Any]) -> dict[str, Any]:
        """The mark of a run, with this account in it."""
        return {**mark, _SENT: asdict(self)}


def account_of(mark: Any, run_id: str | None, after: int) -> Account | None:
    """The account in the mark of a run; `None` if there is none, or it belongs to another run."""
    if not isinstance(mark, Mapping) or run_id is None or mark.get("run_id") != run_id:
        return None
    found = mark.get(_SENT)
    known = {each.name for each in fields(Account)}
    if not isinstance(found, Mapping) or set(found) != known:
        # A process ended before it sent anything, or was of an earlier version.
        return None
    account = Account(**found)
    account.last_event = max(account.last_event, after)
    return account
