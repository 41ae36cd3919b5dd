"""All benchmarks, one after another: `python -m tests.benchmarks [--model DIR] [--only NAME]… [--write]`.

Prints the results, preceded by the machine and the versions; `--write` also replaces the table in README's
section on speed, and what docs/speed.md shows of the machine, of TRL's commands and of the output. With a
model, whose folder's name is shown, the benchmarks of steps are run with it, too. For wall-clock ratios the
machine must be idle: its load is recorded.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.results import VARIABLE, Result, as_table, recorded
from tests.support.documents import put

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "tokenizers",
    "datasets",
    "aim",
    "wandb",
    "mlflow-skinny",
    "trackio",
)
MODEL = "MODEL"
"""Stands for the model's folder. Without one, a part with it is left out."""
PARTS: tuple[tuple[str, ...], ...] = (
    ("train_speed", MODEL, "--steps", "9", "--rows", "long", "--peers", "fused,trl,checkpointed"),
    ("train_speed", MODEL, "--steps", "9", "--rounds", "1", "--peers", "trl,checkpointed"),
    (
        "train_speed",
        MODEL,
        "--steps",
        "9",
        "--rounds",
        "1",
        "--rows",
        "long",
        "--way",
        "lora",
        "--peers",
        "trl",
    ),
    ("train_speed", MODEL, "--steps", "9", "--rounds", "1", "--way", "dpo", "--peers", "trl"),
    ("train_speed", "--steps", "60", "--skip", "10", "--peers", "fused,trl,checkpointed"),
    ("train_speed", "--steps", "60", "--skip", "10", "--way", "lora", "--peers", "trl"),
    ("train_speed", "--steps", "60", "--skip", "10", "--way", "dpo", "--peers", "trl"),
    ("evaluation",),
    ("preparing_chats", MODEL),
    ("busy_machine", "--rounds", "1"),
    ("checkpoint_stall", MODEL),
    ("startup",),
    ("event_cost",),
    ("tracked_steps", "--turns", "2"),
    ("scanner_cost",),
    ("delivery", "10000"),
    ("journal_reads", "1000000", "1"),
    ("runs_list", "3000", "1000"),
)
"""Each benchmark with its arguments, in the order of the table."""


def machine() -> str:
    """The hardware and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    busy = os.getloadavg()[0]
    return (
        f"{count} processors ({(names or [platform.machine()])[0]}), load {busy:.1f} before the start, "
        f"{time.strftime('%Y-%m-%d')}; Python {platform.python_version()}, {versions}"
    )


def measured(part: tuple[str, ...], results: Path) -> str:
    """The output of one benchmark, or its error: the others continue."""
    name, *arguments = part
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments],
        cwd=ROOT, env=os.environ | {VARIABLE: str(results)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return f"failed: {(done.stderr.strip() or 'no reason').splitlines()[-1]}"
    return done.stdout.strip()


def commands(results: list[Result]) -> list[str]:
    """TRL's commands, each once."""
    return list(dict.fromkeys(each.command for each in results if each.command))


def main() -> None:
    names = sorted({name for name, *_ in PARTS})
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--only", action="append", choices=names)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    if asked.write and (asked.only or not asked.model):
        parser.error("--write replaces the whole table: it takes --model, and no --only")
    on = machine()
    print(on, flush=True)
    printed, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        path.touch()
        for part in PARTS:
            if part[0] not in (asked.only or names) or (MODEL in part and not asked.model):
                continue
            model = str(Path(asked.model).absolute()) if asked.model else ""
            said = measured(tuple(model if each == MODEL else each for each in part), path)
            failed += [part[0]] if said.startswith("failed: ") else []
            printed.append(f"{' '.join(part)}\n{said}")
            print(f"\n{printed[-1]}", flush=True)
        results = recorded(path)
    print(f"\n{as_table(results)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}{'; nothing is written' if asked.write else ''}")
    if asked.write:
        put("speed", as_table(results))
        typed = "\n".join(commands(results))
        output = "\n\n".join(printed)
        put("benchmarks", f"{on}\n\nTRL's commands:\n\n```sh\n{typed}\n```\n\n```text\n{output}\n```\n")


if __name__ == "__main__":
    main()
