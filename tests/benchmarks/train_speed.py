"""Steps per second against TRL's own command and a bare padded PyTorch loop:
`python -m tests.benchmarks.train_speed [MODEL] [--rows long]`.

`fmstune train` and `trl sft` tune the same model on the same rows in the same order with the same settings,
one after the other, and so does a loop of forward, backward, clipping and AdamW on padded batches; the losses
of each step are compared as well. Without MODEL, the demo's is used. Short
rows are of 20 to 30 tokens, eight at once; long ones of 60 to 210, most of them trained, four at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fmstune import demo
from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
LENGTH, RATE = 256, 1e-4
BATCHES = {"short": 8, "long": 4}
MOST_EXCHANGES = 8


def write_rows(path: Path, *, long: bool) -> None:
    """The demo's single exchanges as prompt and completion, or several in one, in plain text: of a chat, TRL
    would learn what the template writes after the answer's end token as well."""
    chance = random.Random(0)
    exchanges = []
    for line in demo.data_file("train").read_text().splitlines():
        messages = json.loads(line)["messages"]
        if len(messages) == 2:
            exchanges.append([message["content"] for message in messages])
    lines = []
    for question, answer in exchanges:
        more = chance.choices(exchanges, k=chance.randint(2, MOST_EXCHANGES)) if long else []
        text = "".join(f"\nQuestion: {asked}\nAnswer: {answered}" for asked, answered in more)
        row = {"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}{text}"}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def run(command: list[str], folder: Path, **variables: str) -> str:
    """What a command prints; ends the benchmark when it fails."""
    environment = {**variables, **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def ours(folder: Path, model: str, steps: int, batch: int) -> tuple[float, list[float]]:
    """Steps per second and the loss of each step of `fmstune train`."""
    settings = {
        "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": RATE, "logging_steps": 1,
        "save_strategy": "no", "max_length": LENGTH,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"training.{key}={value}")]
    command = [str(BIN / "fmstune"), "train", "--model", model, "--data", "rows/train.jsonl", *sets]
    run([*command, "--output-dir", "ours", "--overwrite"], folder)
    events = [e for e in JournalReader(folder / "ours" / TRACKING_DIR / JOURNAL_NAME) if e.kind == "metrics"]
    losses = [event.values["loss"] for event in events if "loss" in event.values]
    (speed,) = [e.values["train_steps_per_second"] for e in events if "train_steps_per_second" in e.values]
    return speed, losses


def theirs(folder: Path, model: str, steps: int, batch: int, *extra: str) -> tuple[float, list[float]]:
    """Steps per second and the loss of each step of `trl sft`."""
    command = [
        str(BIN / "trl"), "sft", "--model_name_or_path", model, "--dataset_name", "rows",
        "--max_steps", str(steps),
        "--per_device_train_batch_size", str(batch), "--learning_rate", str(RATE), "--logging_steps", "1",
        "--save_strategy", "no", "--max_length", str(LENGTH), "--bf16", "false", "--dtype", "float32",
        "--output_dir", "theirs", *extra,
    ]  # fmt: skip
    printed = run(command, folder)  # its state is saved with checkpoints only, which would cost time
    losses = [float(value) for value in re.findall(r"'loss': '?([\d.e+-]+)", printed)]
    (speed,) = re.findall(r"'train_steps_per_second': '?([\d.e+-]+)", printed)
    return float(speed), losses


def bare(folder: Path, model: str, steps: int, batch: int, *extra: str) -> tuple[float, list[float]]:
    """Steps per second and the loss of each step of a bare loop, whose threads wait as fmstune's do."""
    numbers = {"steps": steps, "batch": batch, "rate": RATE, "length": LENGTH}
    given = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.support.bare_loop", model, str(folder / "rows" / "train.jsonl")]
    found = json.loads(run([*command, *given, *extra], ROOT, GOMP_SPINCOUNT="20000").splitlines()[-1])
    return found["steps_per_second"], found["losses"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", choices=BATCHES, default="short")
    asked = parser.parse_args()
    steps, batch = asked.steps, BATCHES[asked.rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        write_rows(folder / "rows" / "train.jsonl", long=asked.rows == "long")
        if asked.model:
            model = str(Path(asked.model).resolve())
        else:
            model = str(folder / "model")
            demo.build_model().save_pretrained(model)
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(demo.model_dir()).save_pretrained(model)
        speed, losses = ours(folder, model, steps, batch)
        print(f"fmstune train                            {speed:7.3f} steps/s")
        peers: list[tuple[str, Callable[..., tuple[float, list[float]]], list[str]]] = [
            ("trl sft", theirs, []),
            ("trl sft --gradient_checkpointing false", theirs, ["--gradient_checkpointing", "false"]),
            ("a bare padded loop", bare, []),
            ("a bare padded loop, AdamW(fused=True)", bare, ["--fused"]),
        ]
        for label, peer_runs, extra in peers:
            peer, peer_losses = peer_runs(folder, model, steps, batch, *extra)
            apart = max(abs(a - b) for a, b in zip(losses, peer_losses, strict=True))
            print(
                f"{label:<40} {peer:7.3f} steps/s   fmstune is {speed / peer:5.2f} x   "
                f"losses at most {apart:.0e} apart (printed with 4 digits)",
                flush=True,
            )


if __name__ == "__main__":
    main()
