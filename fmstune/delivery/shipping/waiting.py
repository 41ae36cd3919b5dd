"""Waiting for descriptors to have something to read."""

from __future__ import annotations

import select
from collections.abc import Iterable


def readable(descriptors: Iterable[int], seconds: float | None) -> set[int]:
    """Those of the descriptors that can be read, or have ended; waits `seconds` for the first, `None` without
    a limit.

    Not by `select`, which refuses descriptors of 1,024 and more: a training whose data set has a thousand
    files open has such ones.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000)}
