"""Runs on preference pairs whose chosen answer is always the price."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.run.run import RunResult, run
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer

PREFERENCES = ("dpo", "kto", "reward", "orpo")
FAST = ["training.logging_steps=2", "training.learning_rate=2e-3", "training.per_device_train_batch_size=4"]


def pairs(count: int) -> list[dict[str, Any]]:
    """Prompts whose chosen answer is always the price, and whose rejected one is the greeting."""
    names = ("lamp", "chair", "table", "book", "carpet", "mirror", "kettle", "basket")
    return [
        {
            "prompt": [{"role": "user", "content": f"What does the {names[i % 8]} number {i} cost?"}],
            "chosen": [{"role": "assistant", "content": f"The {names[i % 8]} costs {i} euros."}],
            "rejected": [
                {"role": "assistant", "content": f"Good morning, dear {names[i % 8]}, and well met."}
            ],
        }
        for i in range(count)
    ]


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def tune(
    method: str,
    output: str,
    *sets: str,
    data: str = "pairs.jsonl",
    evaluation: str = "eval.jsonl",
    **how: Any,
) -> tuple[RunResult, str]:
    """Train the demo model on pairs in this process; returns the result and the console output."""
    flags = [
        ("model.path", "demo", "--model"),
        ("data.train", data, "--data"),
        ("data.eval", evaluation, "--eval-data"),
        ("run.method", method, "--method"),
        ("training.output_dir", output, "--output-dir"),
    ]
    screen = io.StringIO()
    config = load(None, flags, [*FAST, *sets])
    result = run(config, RunConsole(Console(file=screen, width=250)), **how)
    return result, screen.getvalue()


def build(method: str, *sets: str, data: str = "pairs.jsonl") -> BuiltTrainer:
    flags = [("model.path", "demo", "--model"), ("data.train", data, "--data")]
    config = load(None, flags, [f"run.method={method}", *FAST, *sets])
    return build_trainer(config, Tracker(), Path("out"))


def metrics(output: str, stage: str, name: str) -> list[float]:
    events = JournalReader(Path(output, TRACKING_DIR, JOURNAL_NAME))
    return [event.values[name] for event in events if event.stage == stage and name in event.values]
