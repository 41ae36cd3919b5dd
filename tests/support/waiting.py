"""Waits for events in other processes."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    """Wait until the condition is true.

    The limit is for conditions that never hold, and no promise: a loaded machine is many times slower.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
