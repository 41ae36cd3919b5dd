"""Count the values of a metric at one step: the first, and those tracked there after it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

from fmstune.trackers.values.progressions import Progressions

_NONE: Mapping[str, int] = MappingProxyType({})
_INTEGERS = frozenset({int})


@dataclass(slots=True)
class _Steps:
    """The steps that have a value, and their count where it is not one: a run of a million logs with twenty
    metrics each must fit in memory next to an SDK."""

    once: Progressions = field(default_factory=Progressions)
    more: dict[int, int] = field(default_factory=dict)
    stepless: int = 0

    def count(self, step: int | None) -> int:
        if step is None:
            self.stepless += 1
            return self.stepless - 1
        if self.once.add(step):
            return 0
        before = self.more.get(step, 1)
        self.more[step] = before + 1
        return before

    def cut(self, last: int) -> None:
        self.once.cut(last)
        self.more = {each: count for each, count in self.more.items() if each <= last}


class Occurrences:
    """Count values by key and step, across the resumes of a run.

    Nearly all metrics are always logged with the same others, so that one count stands for all of them: a
    group. Once one of them is logged without the others, each has its own.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[Hashable, ...], _Steps] = {}
        self._group_of: dict[Hashable, tuple[Hashable, ...]] = {}
        self._keys: dict[Hashable, _Steps] = {}

    def count(self, key: Hashable, step: int | None) -> int:
        """Count one more value; return how many `key` had at `step` (64 bits, or `None`) before it."""
        found = self._keys.get(key)
        if found is None:
            self._part(self._group_of.get(key))
            found = self._keys.setdefault(key, _Steps())
        return found.count(step)

    def count_all(self, stage: Hashable, names: Sequence[str], step: int | None) -> Mapping[str, int]:
        """Count one more value for the key of each name, `(stage, name)`; return what `count` would return,
        for those where it is not 0."""
        found = self._group(stage, names)
        if found is None:
            counts = {name: self.count((stage, name), step) for name in names}
            return {name: count for name, count in counts.items() if count}
        before = found.count(step)
        return dict.fromkeys(names, before) if before else _NONE

    def count_each(
        self, stage: Hashable, names: Sequence[str], steps: Sequence[int | None]
    ) -> Iterator[Mapping[str, int]]:
        """What `count_all` returns for each of these steps."""
        found = self._group(stage, names)
        if (
            found is not None
            and _INTEGERS.issuperset(map(type, steps))
            and found.once.add_after(cast(Sequence[int], steps))
        ):
            return itertools.repeat(_NONE, len(steps))
        return (self.count_all(stage, names, step) for step in steps)

    def _group(self, stage: Hashable, names: Sequence[str]) -> _Steps | None:
        """The count of names that have always been logged together."""
        group = (stage, *names)
        found = self._groups.get(group)
        if found is None:
            keys = [(stage, name) for name in names]
            if not any(key in self._keys or key in self._group_of for key in keys):
                found = self._groups[group] = _Steps()
                self._group_of |= dict.fromkeys(keys, group)
        return found

    def resume(self, step: int) -> None:
        """The run resumes at `step`: later steps are logged again, and counted from zero.

        Values at `step` itself, including those before the training, are kept: a resumed run adds to them.
        """
        for found in self._all():
            found.cut(step)

    def _all(self) -> Iterator[_Steps]:
        yield from self._groups.values()
        yield from self._keys.values()

    def _part(self, group: tuple[Hashable, ...] | None) -> None:
        """Count the keys of a group separately from now on."""
        if group is None:
            return
        steps, (stage, *names) = self._groups.pop(group), group
        for name in names:
            del self._group_of[stage, name]
            self._keys[stage, name] = copy.deepcopy(steps)
