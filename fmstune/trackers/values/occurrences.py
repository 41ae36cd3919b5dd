"""Count the values of a metric at one step: the first, and those tracked there after it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from fmstune.trackers.values.progressions import Progressions


@dataclass(slots=True)
class _Steps:
    """The steps that have a value, and their count where it is not one: a run of a million logs with twenty
    metrics each must fit in memory next to an SDK."""

    once: Progressions = field(default_factory=Progressions)
    more: dict[int, int] = field(default_factory=dict)
    stepless: int = 0


class Occurrences:
    """Count values by key and step, across the resumes of a run."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, _Steps] = {}

    def count(self, key: Hashable, step: int | None) -> int:
        """Count one more value; return how many `key` had at `step` (64 bits, or `None`) before it."""
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
        """The run resumes at `step`: later steps are logged again, and counted from zero.

        Values at `step` itself, including those before the training, are kept: a resumed run adds to them.
        """
        for found in self._keys.values():
            found.once.cut(step)
            found.more = {each: count for each, count in found.more.items() if each <= step}
