"""Reading a long journal, against pandas: `python -m tests.benchmarks.journal_reads [LINES [TURNS]]`.

`runs show`, `runs plot` and `runs export` of a run with so many lines of four metrics (default 200,000), each
in its own process, interleaved with `pandas.read_json(lines=True)` of the same file, which only reads it.
Printed are the CPU seconds including startup, the ratios, and the peak memory of each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fmstune.delivery.journal.encoding import body, body_of_finite, numbered
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from tests.benchmarks.results import multiple, record

LINES, TURNS = 200_000, 3
PANDAS = "import sys, pandas; pandas.read_json(sys.argv[1], lines=True)"


def write_journal(path: Path, lines: int) -> None:
    """A journal as a training writes it."""
    path.parent.mkdir(parents=True)
    header = {"seq": 0, "kind": "header", "version": 1, "run": "run", "id": "id", "time": 1.8e9, "cwd": "/"}
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        for step in range(1, lines):
            loss = 2 + 1 / step
            values = {"loss": loss, "learning_rate": 1e-4 / step}
            values |= {"grad_norm": loss / 3, "mean_token_accuracy": 1 / loss}
            event = {"time": 1.8e9 + step / 7, "kind": "metrics", "stage": "train"}
            event |= {"step": step, "epoch": step / 1000, "values": values}
            file.write(numbered(step, body_of_finite(event)))
        file.write(numbered(lines, body({"time": 1.9e9, "kind": "status", "status": "finished"})))


def measured(command: list[str]) -> tuple[float, float, float]:
    """The CPU seconds and wall-clock seconds of a process, and its memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        assert process.stderr is not None
        sys.exit(process.stderr.read().decode())
    cpu = usage.ru_utime + usage.ru_stime
    return cpu, time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else LINES
    most = int(sys.argv[2]) if len(sys.argv) > 2 else TURNS
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder).resolve() / "run"
        path = run / TRACKING_DIR / JOURNAL_NAME
        write_journal(path, lines)
        fmstune = [sys.executable, "-m", "fmstune", "runs"]
        commands = {
            "pandas": [sys.executable, "-c", PANDAS, str(path)],
            "show": [*fmstune, "show", str(run)],
            "plot": [*fmstune, "plot", str(run)],
            "export": [*fmstune, "export", str(run), "-o", f"{folder}/run.csv"],
        }
        turns = [{name: measured(command) for name, command in commands.items()} for _ in range(most)]
    print(f"{lines:,} lines")
    found = {}
    for name in commands:
        cpu, wall, memory = (statistics.median(turn[name][at] for turn in turns) for at in range(3))
        ratio = statistics.median(turn[name][0] / turn["pandas"][0] for turn in turns)
        found[name] = ratio, memory
        print(f"{name:<8} {cpu:7.1f} s   {ratio:5.2f} x   wall {wall:7.1f} s   {memory:6.0f} MB")
    (_, theirs), *mine = found.values()
    record(
        f"`runs show`, `runs plot`, `runs export` of a journal of {lines:,} lines",
        "`pandas.read_json(lines=True)`",
        f"{', '.join(multiple(ratio) for ratio, _ in mine)} its CPU time; at most "
        f"{max(memory for _, memory in mine):.0f} MB of memory, where it takes {theirs:,.0f} MB",
    )


if __name__ == "__main__":
    main()
