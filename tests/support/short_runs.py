"""Runs of a few steps on the demo's data, in this process."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.run.run import run

_SHORT = (
    "training.max_steps=3",
    "training.logging_steps=1",
    "training.eval_strategy=no",
    "training.per_device_train_batch_size=4",
    "training.warmup_steps=0",
    "training.learning_rate=1e-2",
    "data.max_rows=20",
)


def train(out: Path, *sets: str, model: str = "demo", resume: str | None = None) -> str:
    """Train `model` for three steps; returns the console output."""
    flags = [
        ("model.path", model, "--model"),
        ("data.train", "demo", "--data"),
        ("training.output_dir", str(out), "--output-dir"),
    ]
    screen = io.StringIO()
    run(load(None, flags, [*_SHORT, *sets]), RunConsole(Console(file=screen, width=200)), resume=resume)
    return screen.getvalue()
