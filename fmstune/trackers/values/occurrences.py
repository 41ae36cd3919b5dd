"""Which value of a metric at one step this is: the first, or one of those tracked there after it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from fmstune.trackers.values.progressions import Progressions


@dataclass(slots=True)
class _Steps:
    """The steps that have a value, and how many they have where it is not one: a run of a million logs, with
    twenty metrics each, has to fit beside an SDK."""

    once: Progressions = field(default_factory=Progressions)
    more: dict[int, int] = field(default_factory=dict)
    stepless: int = 0


class Occurrences:
    """Counts values by key and step, over the resumes of a run."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, _Steps] = {}

    def count(self, key: Hashable, step: int | None) -> int:
        """How many values `key` has had at `step` (64 bits, or `None`) before this one, which is counted."""
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = _Steps()
        if step is None:
            found.stepless += 1
            return found.stepless - 1
        if found.once.add(step):
            return 0
        before = found.more.get(step, 1)
        found.more[step] = before + 1
        return before

    def resume(self, step: int) -> None:
        """The run continues from `step`: what comes at later steps is logged again, and counted from zero.

        Values at `step` itself are kept, those before the training included: a resumed run adds to them.
        """
        for found in self._keys.values():
            found.once.cut(step)
            found.more = {each: count for each, count in found.more.items() if each <= step}
