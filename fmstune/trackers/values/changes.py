"""The changes made to a tracker's values, as sentences: losses first, and all of them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

Kind = Literal["lost", "changed", "renamed"]
"""A value that is missing, one that is stored differently, or one under another name."""

_MOST: dict[Kind, int] = {"lost": 1000, "changed": 50, "renamed": 50}
"""The most sentences of each kind, so that a run with a new name at each step does not fill its ledger."""
_MORE: dict[Kind, str] = {
    "lost": "more values that are kept in the journal only",
    "changed": "more values that were changed",
    "renamed": "more names",
}
_MOST_LISTED = 3
_RENAMED = re.compile(r"(.+) is called (.+)", re.DOTALL)
_MORE_NAMES = re.compile(rf"and ([0-9]+) {_MORE['renamed']}")


class Changes:
    """Each change once, with the number of values it was made to."""

    def __init__(self) -> None:
        self._counts: dict[Kind, dict[str, int]] = {"lost": {}, "changed": {}, "renamed": {}}
        self._more: dict[Kind, set[int]] = {"lost": set(), "changed": set(), "renamed": set()}

    def note(self, change: str, kind: Kind = "changed", *, values: int = 0) -> None:
        """Record a change of so many values; changes beyond the maximum of their kind are only counted."""
        known = self._counts[kind]
        if change in known or len(known) < _MOST[kind]:
            known[change] = known.get(change, 0) + values
        else:
            self._more[kind].add(hash(change))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was changed: missing values first, renamed ones last."""
        found: list[str] = []
        for kind, known in self._counts.items():
            found += [
                f"{change} ({count} values)" if count > 1 else change for change, count in known.items()
            ]
            if more := len(self._more[kind]):
                found.append(f"and {more} {_MORE[kind]}")
        return tuple(found)


def for_people(changes: Collection[str]) -> list[str]:
    """The sentences for display: of many renamings, only a few."""
    renamed = [match for each in changes if (match := _RENAMED.fullmatch(each))]
    uncounted = [match for each in changes if (match := _MORE_NAMES.fullmatch(each))]
    count = len(renamed) + sum(int(match[1]) for match in uncounted)
    if count <= _MOST_LISTED:
        return list(changes)
    names = {match[0] for match in (*renamed, *uncounted)}
    shown = ", ".join(f"{match[1]} ({match[2]})" for match in renamed[:_MOST_LISTED])
    said = f"{count} names are others there: {shown}, and {count - _MOST_LISTED} more names"
    return [*(each for each in changes if each not in names), said]
