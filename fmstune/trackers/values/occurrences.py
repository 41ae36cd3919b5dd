"""Which value of a metric at one step this is: the first, or one of those tracked there after it."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Steps:
    """The steps that have a value, in order, and how many they have where it is not one.

    Eight bytes a step: a run of a million logs, with twenty metrics each, has to fit beside an SDK.
    """

    once: array[int] = field(default_factory=lambda: array("q"))
    more: dict[int, int] = field(default_factory=dict)
    stepless: int = 0


class Occurrences:
    """Counts values by key and step, over the resumes of a run."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, _Steps] = {}

    def count(self, key: Hashable, step: int | None) -> int:
        """How many values `key` has had at `step` (64 bits, or `None`) before this one, which is counted."""
        found = self._keys.setdefault(key, _Steps())
        if step is None:
            found.stepless += 1
            return found.stepless - 1
        at = bisect.bisect_left(found.once, step)
        if at == len(found.once) or found.once[at] != step:
            found.once.insert(at, step)
            return 0
        before = found.more.get(step, 1)
        found.more[step] = before + 1
        return before

    def resume(self, step: int) -> None:
        """The run continues from `step`: what comes at later steps is logged again, and counted from zero.

        Values at `step` itself are kept, those before the training included: a resumed run adds to them.
        """
        for found in self._keys.values():
            del found.once[bisect.bisect_right(found.once, step) :]
            found.more = {each: count for each, count in found.more.items() if each <= step}
