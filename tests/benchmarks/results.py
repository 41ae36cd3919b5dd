"""What the benchmarks found, as the rows of README's table.

`python -m tests.benchmarks` runs each benchmark in a process of its own, which appends its rows as JSON lines
to the file that the variable `FMSTUNE_BENCHMARK_RESULTS` names. Without the variable, it only prints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "FMSTUNE_BENCHMARK_RESULTS"


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured, the `peer` that it was compared with in the same run, and how they compare.
    `command` is the peer's, if settings matter."""

    what: str
    peer: str
    result: str
    command: str = ""


def record(what: str, peer: str, result: str, command: str = "") -> None:
    """Add a row to the table, if there is one."""
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Result(what, peer, result, command))) + "\n")


def recorded(path: Path) -> list[Result]:
    """The rows that were recorded in a file."""
    return [Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def as_table(results: Sequence[Result]) -> str:
    """A Markdown table. The same peer in several rows is named once."""
    lines = ["| what | compared with | result |", "|---|---|---|"]
    before = ""
    for each in results:
        lines.append(f"| {each.what} | {'the same' if each.peer == before else each.peer} | {each.result} |")
        before = each.peer
    return "\n".join(lines) + "\n"


def multiple(ratio: float) -> str:
    """A ratio in two or three digits, such as "0.75 ×", "9.0 ×" and "77 ×"."""
    digits = 2 if ratio < 2.995 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{digits}f} ×"
