"""Short runs on the demo, in this process and in subprocesses with limits."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.run.run import dry_run, run
from tests.support import commands

SHORT = [
    "training.max_steps=6",
    "training.logging_steps=2",
    "training.eval_steps=6",
    "training.save_steps=3",
    "training.per_device_train_batch_size=2",
    "data.max_rows=12",  # as many as six steps see; preparing more would take as long as training
]


def small(sets: Sequence[str]) -> tuple[str, ...]:
    """Use few of the demo's rows for evals, unless the settings choose a model or data."""
    own = any(each.startswith(("data.train", "data.eval", "data.stream", "model.path")) for each in sets)
    return () if own else ("model.path=demo", "data.train=demo", 'data.eval=[{path="demo", max_rows=8}]')


def tune(output: str, *sets: str, **how: Any) -> str:
    """A short run on the demo; returns the console output. Raises what the run raises."""
    config = load(None, [("training.output_dir", output, "--output-dir")], [*SHORT, *small(sets), *sets])
    screen = io.StringIO()
    run(config, RunConsole(Console(file=screen, width=200)), **how)
    return screen.getvalue()


def dry_run_shown(*sets: str) -> str:
    """A dry run on the demo; returns the console output."""
    screen = io.StringIO()
    dry_run(load(None, [], [*SHORT, *sets]), RunConsole(Console(file=screen, width=200)))
    return screen.getvalue()


def weights(directory: str | Path) -> str:
    """A hash of the trained weights."""
    files = sorted(Path(directory).glob("*.safetensors"))
    assert files, directory
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def weights_of(*sets: str) -> str:
    """A hash of the weights that a short run with these settings trains."""
    with tempfile.TemporaryDirectory() as folder:
        tune(f"{folder}/out", *sets)
        return weights(f"{folder}/out")


def fmstune(
    *arguments: str, cwd: Path, limits: Mapping[int, int] | None = None
) -> subprocess.CompletedProcess[str]:
    """`fmstune train` on the demo in a subprocess, with kernel limits."""
    sets = [part for setting in SHORT for part in ("--set", setting)]
    return commands.fmstune("train", *sets, *arguments, cwd=cwd, limits=limits)


def dry_run_file(path: str) -> str:
    """A dry run of a configuration file; returns the console output."""
    screen = io.StringIO()
    dry_run(load(Path(path)), RunConsole(Console(file=screen, width=200)))
    return screen.getvalue()
