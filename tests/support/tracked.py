"""Short runs on the demo with trackers, in this process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.run.run import RunResult, run
from tests.support.journals import journal_path
from tests.support.tuned import small

SHORT = [
    "tracking.check_timeout=300",  # an SDK is slow to import on a loaded machine
    "resources.interval=0",  # tests count events, and samples are taken by wall-clock time
    "training.max_steps=12",
    "training.logging_steps=2",
    "training.eval_steps=6",
    "training.save_steps=6",
    "training.per_device_train_batch_size=4",
    "data.max_rows=48",  # as many as twelve steps see; preparing more would take as long as training
]


def tune(
    output: str, *sets: str, trackers: tuple[str, ...] = (), params: tuple[str, ...] = (), **how: Any
) -> tuple[RunResult, str]:
    """A short run on the demo, in this process; returns the result and the console output."""
    flags = [("training.output_dir", output, "--output-dir"), ("tracking.trackers", trackers, "--tracker")]
    config = load(None, flags, [*SHORT, *small(sets), *sets], params)
    screen = io.StringIO()
    result = run(config, RunConsole(Console(file=screen, width=200)), **how)
    return result, screen.getvalue()


def rewrite_as_interrupted(directory: Path) -> None:
    """Remove the last event from a journal, as if the trainer had been killed."""
    path = journal_path(directory)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
