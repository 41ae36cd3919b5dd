"""Wait for descriptors to become readable."""

from __future__ import annotations

import select
from collections.abc import Iterable


def readable(descriptors: Iterable[int], seconds: float | None) -> set[int]:
    """The descriptors that are readable, or have ended; waits `seconds` for the first, with `None` without a
    limit.

    Not with `select`, which refuses descriptors of 1,024 and more: a training whose data set has a thousand
    open files has such ones.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000)}
