"""The time to list 10,000 runs, and to read a journal of a million lines:
`python -m tests.benchmarks.runs_list [RUNS] [LINES]`.

Each is compared with a bare scan in the same process: `json.loads` of every line of the same journals.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fmstune.cli.runs import list_
from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.report import index
from fmstune.report.curves import read_run
from tests.benchmarks.results import multiple, record
from tests.support.made_runs import make_run


def seconds(call: Callable[[], object]) -> float:
    """The CPU time of one call, whose output is discarded."""
    shown, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    began = time.process_time()
    try:
        call()
    finally:
        sys.stdout.close()
        sys.stdout = shown
    return time.process_time() - began


def scan(folder: Path) -> None:
    for path in folder.glob(f"*/{TRACKING_DIR}/{JOURNAL_NAME}"):
        with path.open("rb") as file:
            for line in file:
                json.loads(line)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    lines = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        os.environ["FMSTUNE_CACHE"] = f"{name}/cache"
        runs, long = Path(name, "runs"), Path(name, "long", "run")
        losses = {step: 5.0 / step for step in range(1, 21)}
        for number in range(count):
            settings = {"training.learning_rate": number * 1e-6}
            make_run(
                runs / f"run-{number:05}", losses, params={"n": number}, settings=settings, eval_loss=1.0
            )
        time.sleep(2.1)  # journals that have just been written are not cached
        bare = seconds(lambda: scan(runs))
        first = seconds(lambda: list_([runs]))
        again = seconds(lambda: list_([runs]))
        chosen = seconds(lambda: list_([runs], where=["training.learning_rate>5e-3"], sort="params.n"))
        size = index.index_path().stat().st_size / 1e6
        print(f"{count:,} runs: json.loads of every line  {bare:6.2f} s")
        print(f"  list, for the first time          {first:6.2f} s   {first / bare:5.2f} x")
        print(f"  list, from the index of {size:3.0f} MB    {again:6.2f} s   {again / bare:5.2f} x")
        print(f"  list --where … --sort …           {chosen:6.2f} s   {chosen / bare:5.2f} x")

        record(
            f"`fmstune runs list`, {count:,} runs",
            "`json.loads` of every line of their journals",
            f"{multiple(again / bare)} its CPU time; {multiple(first / bare)} the first time",
        )
        (long / TRACKING_DIR).mkdir(parents=True)
        path = long / TRACKING_DIR / JOURNAL_NAME
        journal = JournalWriter(path, Header("long", "long", time.time(), name))
        for step in range(1, lines + 1):
            values = {"loss": 1 / step, "learning_rate": 1e-4, "grad_norm": 1.5, "accuracy": 0.5}
            journal.append("metrics", {"stage": "train", "step": step, "epoch": step / 100, "values": values})
        journal.close()
        bare = seconds(lambda: scan(long.parent))
        show = seconds(lambda: read_run(long))
        print(f"a journal of {lines:,} lines: json.loads  {bare:6.2f} s")
        print(f"  all curves of it                  {show:6.2f} s   {show / bare:5.2f} x")


if __name__ == "__main__":
    main()
