"""Training steps next to busy processes, and on an idle machine: fmstune's own choice of threads against
other OpenMP settings, interleaved.

    python -m tests.benchmarks.busy_machine [--model DIR] [--steps 15] [--rounds 3] [--busy 4]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tests.benchmarks.results import multiple, record

SETTINGS = {
    "fmstune's choice": {},
    # libgomp's behaviour without settings.
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that only count."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def seconds(model: str, steps: int, setting: dict[str, str]) -> float:
    """The seconds that the steps of one run took."""
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES} | setting
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "fmstune", "train", "--model", model, "--data", "demo",
            "--output-dir", "out", "--max-steps", str(steps), "--tracker", "none",
            "--set", "training.eval_strategy=no", "--set", "training.save_strategy=no",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
    found = re.search(r"^done .* in ([\d.]+) s", done.stderr, re.M)
    assert found is not None, done.stderr
    return float(found.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=4)
    asked = parser.parse_args()
    for beside in (0, asked.busy):
        taken: dict[str, list[float]] = {name: [] for name in SETTINGS}
        with busy(beside):
            for _ in range(asked.rounds):
                for name, setting in SETTINGS.items():
                    taken[name].append(seconds(asked.model, asked.steps, setting))
        medians = {name: statistics.median(times) for name, times in taken.items()}
        best = min(medians.values())
        if beside:
            mine, theirs, _ = medians.values()
            record(
                f"{asked.steps} steps of the demo beside {beside} busy processes",
                "OpenMP's default threads, as torch has them",
                f"{multiple(theirs / mine)} as fast; {multiple(mine / best)} the best setting's time",
            )
        print(f"beside {beside} busy processes, {asked.steps} steps of {asked.model}:")
        for name, median in medians.items():
            print(f"  {name:18} {median:7.2f} s  {median / best:6.2f} x the best")


if __name__ == "__main__":
    main()
