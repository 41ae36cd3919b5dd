"""`python -m tests.support.measured FILE ARGUMENTS`: `fmstune`, and in FILE what its process held last."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

_NAMES = {"VmRSS": "resident", "VmData": "data"}


@dataclass(frozen=True)
class Held:
    """What a process held at its end, in bytes: in memory, and as RLIMIT_DATA counts."""

    resident: int
    data: int


def held(path: Path) -> Held:
    """What such a process has written."""
    return Held(**json.loads(path.read_text()))


def _note(path: Path) -> None:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    path.write_text(json.dumps({ours: int(lines[name].split()[0]) * 1024 for name, ours in _NAMES.items()}))


if __name__ == "__main__":
    from fmstune.cli.main import main

    try:
        main(sys.argv[2:])
    finally:
        _note(Path(sys.argv[1]))
