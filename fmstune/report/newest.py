"""Select the newest values of a metric, if a resumed run tracked steps again."""

from __future__ import annotations

import bisect
import itertools
import operator
from array import array
from collections.abc import Sequence


def newest(steps: array[float], resumed: Sequence[int]) -> Sequence[int]:
    """The indices of the values, sorted by step, for each step from the last process that tracked it; then of
    those without a step (NaN), in order. `resumed` has the start of each process except the first.
    """
    if _increase(steps):
        return range(len(steps))
    bounds = itertools.pairwise([0, *resumed, len(steps)])
    parts = [range(begin, end) for begin, end in bounds if begin < end]
    if all(_increase(steps[part.start : part.stop]) for part in parts):
        return _merged(steps, parts)
    stepless = [at for at, step in enumerate(steps) if step != step]
    last = {step: at for at, step in enumerate(steps) if step == step}
    if len(last) + len(stepless) == len(steps):
        return [last[step] for step in sorted(last)] + stepless
    # The start of the process that tracked the last value of a step.
    begun = {step: _begin(at, resumed) for step, at in last.items()}
    kept = [at for at, step in enumerate(steps) if step == step and at >= begun[step]]
    return sorted(kept, key=steps.__getitem__) + stepless


def _increase(steps: array[float]) -> bool:
    return all(map(operator.lt, steps, itertools.islice(steps, 1, None))) and steps[0] == steps[0]


def _merged(steps: array[float], parts: Sequence[range]) -> Sequence[int]:
    """Merge processes that each have increasing steps, in eight bytes per index, since there may be
    millions."""
    found: Sequence[int] = parts[-1]
    for part in reversed(parts[:-1]):
        both, later, end = array("q"), 0, len(found)
        for at in part:
            while later < end and steps[found[later]] < steps[at]:
                both.append(found[later])
                later += 1
            if later == end or steps[found[later]] != steps[at]:
                both.append(at)
        both.extend(array("q", found[later:]))
        found = both
    return found


def _begin(at: int, resumed: Sequence[int]) -> int:
    before = bisect.bisect_right(resumed, at)
    return resumed[before - 1] if before else 0
