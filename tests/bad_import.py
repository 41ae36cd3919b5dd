"""A plug-in whose import fails as the environment variable BAD_IMPORT (`FAULT FILE`) says, for as long as
FILE does not exist."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

from tests.sample_trackers import Collector

hang = segv = Collector
"""Plug-ins of one run have different names."""
fault, _, until = os.environ.get("BAD_IMPORT", "").partition(" ")
if not Path(until).exists():
    if fault == "raise":
        raise RuntimeError("no licence found")
    if fault == "exit":
        sys.exit("no licence found")
    if fault == "hang":
        time.sleep(3600)
    if fault == "segv":
        ctypes.string_at(0)
