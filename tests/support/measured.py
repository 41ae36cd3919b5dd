"""`python -m tests.support.measured FILE ARGUMENTS`: runs `fmstune`, and writes its memory use to FILE."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

_NAMES = {"VmRSS": "resident", "VmData": "data"}


@dataclass(frozen=True)
class Held:
    """The memory of a process at its end, in bytes: resident, and as RLIMIT_DATA counts it."""

    resident: int
    data: int


def held(path: Path) -> Held:
    """The figures that such a process wrote."""
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
