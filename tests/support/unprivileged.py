"""Python without root's right to read and write any file, which tests in a container have."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

_CAPBSET_DROP = 24
_OVERRIDE = (1, 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of linux/capability.h
_LIBC = ctypes.CDLL(None)
_ROOT = Path(__file__).parents[2]


def drop_override() -> None:
    """Drop the right in a child process, at its next `exec`. Without it, permissions hold for root too."""
    for capability in _OVERRIDE:
        _LIBC.prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # EPERM: the caller is not root


def unprivileged(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process to which permissions apply."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | {"PYTHONPATH": str(_ROOT)},
        preexec_fn=drop_override, capture_output=True, text=True,
    )  # fmt: skip
