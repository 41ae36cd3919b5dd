"""The startup time of commands that should be instant, and of a training up to its first step:
`python -m tests.benchmarks.startup`.

Prints CPU seconds (the minimum of several runs, which other programs on the machine hardly affect) and the
ratio to `python -c "import typer, rich"`, which any command line built on them has to pay; that of the
training is relative to only importing torch and TRL's trainer.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.results import multiple, record

RUNS, TRAININGS = 5, 3
BIN = Path(sys.executable).parent


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one run of a command, its children's included."""
    # The first run compiles what pip has not: an editable install's modules.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    base = [sys.executable, "-c", "import typer, rich"]
    commands = {
        'python -c "import typer, rich"': base,
        "fmstune --help": [str(BIN / "fmstune"), "--help"],
        "fmstune trackers list": [str(BIN / "fmstune"), "trackers", "list"],
        "fmstune train --help": [str(BIN / "fmstune"), "train", "--help"],
    }
    for peer in ("trl --help", "trl sft --help", "wandb --help", "aim --help", "accelerate --help"):
        name, *arguments = peer.split()
        if shutil.which(name, path=str(BIN)):
            commands[peer] = [str(BIN / name), *arguments]
    found = show(commands, RUNS)
    for name in ("fmstune --help", "fmstune trackers list"):
        record(f"`{name}`", '`python -c "import typer, rich"`', f"{multiple(found[name])} its CPU time")
    others = {name: found[name] for name in ("wandb --help", "trl sft --help") if name in found}
    record(
        ", ".join(f"`{name}`" for name in others),
        '`python -c "import typer, rich"`',
        ", ".join(map(multiple, others.values())),
    )
    with tempfile.TemporaryDirectory() as folder:
        train = [
            str(BIN / "fmstune"), "train", "--max-steps", "1", "--output-dir", folder, "--overwrite",
            "--tracker", "none", "--set", "training.save_strategy=no", "--set", "training.eval_strategy=no",
        ]  # fmt: skip
        bare = [sys.executable, "-c", "import torch; from trl import SFTTrainer"]
        found = show({"import torch; SFTTrainer": bare, "fmstune train, one step": train}, TRAININGS)
        record(
            "`fmstune train`, the demo: start, one step, the saved model",
            "`import torch; from trl import SFTTrainer`",
            f"{multiple(found['fmstune train, one step'])} its CPU time",
        )


def show(commands: dict[str, list[str]], runs: int) -> dict[str, float]:
    """Print the time of each, and its ratio to that of the first. Return the ratios."""
    # Interleaved, so that load on the machine affects all of them alike.
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(cpu_seconds(command))
    least = {name: min(found) for name, found in times.items()}
    unit = next(iter(least.values()))
    for name, seconds in least.items():
        print(f"{name:<32} {seconds:6.3f} s CPU   {seconds / unit:5.2f} x")
    return {name: seconds / unit for name, seconds in least.items()}


if __name__ == "__main__":
    main()
