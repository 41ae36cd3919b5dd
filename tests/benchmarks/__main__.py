"""All benchmarks, one after another: `python -m tests.benchmarks [--model DIR] [--only NAME]… [--readme]`.

Prints the results, preceded by the machine and the versions; `--readme` also puts them below the table in
README's section on speed, replacing earlier ones. For wall-clock ratios the machine must be idle: its load is
recorded too.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "trl", "tokenizers", "datasets")
WITH_MODEL = ("evaluation", "preparing_chats", "train_speed")
"""Benchmarks whose first argument is a model."""
NEXT = "Threads are as many as the process may use"
"""How the paragraph below README's table begins."""
BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"


def machine() -> str:
    """The hardware and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    busy = os.getloadavg()[0]
    return (
        f"{count} processors ({(names or [platform.machine()])[0]}), load {busy:.1f} before the start; "
        f"Python {platform.python_version()}, {versions}"
    )


def scripts() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def measured(name: str, model: str | None) -> str:
    """The output of one benchmark, or its error: the others continue."""
    arguments = [model] if model and name in WITH_MODEL else []
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return f"failed: {(done.stderr.strip() or 'no reason').splitlines()[-1]}"
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--only", action="append", choices=scripts())
    parser.add_argument("--readme", action="store_true")
    asked = parser.parse_args()
    model = str(Path(asked.model).resolve()) if asked.model else None
    parts = [machine()]
    print(parts[0], flush=True)
    for name in asked.only or scripts():
        parts.append(f"{name}\n{measured(name, model)}")
        print(f"\n{parts[-1]}", flush=True)
    if asked.readme:
        path = ROOT / "README.md"
        path.write_text(put_in(path.read_text(encoding="utf-8"), "\n\n".join(parts)), encoding="utf-8")


def put_in(readme: str, text: str) -> str:
    """README with these results below its table, replacing earlier ones."""
    block = f"{BEGIN}\n```\n{text}\n```\n{END}"
    before, there, rest = readme.partition(BEGIN)
    if there:
        return f"{before}{block}{rest.partition(END)[2]}"
    before, there, rest = readme.partition(f"\n{NEXT}")
    if not there:
        sys.exit(f"README.md has no paragraph that begins with {NEXT!r}")
    return f"{before}\n{block}\n{there}{rest}"


if __name__ == "__main__":
    main()
