"""Several first deliveries at the same moment, to storage that does not exist yet."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.trackers.registry import build_tracker


def deliver(folder: Path, reference: str, options: Mapping[str, Any], names: list[str]) -> list[int]:
    """Deliver the runs of these names in a folder, each in a process forked from this one; all start at the
    same time. Returns their exit codes."""
    os.chdir(folder)
    begins, begin = os.pipe()
    children = []
    for name in names:
        if (child := os.fork()) == 0:
            os.close(begin)
            os.read(begins, 1)  # until the other end is closed
            os._exit(_delivered(folder / name, reference, options))
        children.append(child)
    os.close(begin)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _delivered(run: Path, reference: str, options: Mapping[str, Any]) -> int:
    try:
        tracker = build_tracker(reference, "t", options)
        Delivery(run, tracker, load_ledger(run, "t") or Ledger("t")).run(lambda: True)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
