"""Steps per second against TRL's own command: `python tests/benchmarks/train_speed.py [MODEL] [STEPS]`.

`fmstune train` and `trl sft` tune the same model on the same rows in the same order with the same settings,
one after the other; the losses of each step are compared as well. Without MODEL, the demo's is used.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fmstune import demo
from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR

BIN = Path(sys.executable).parent
BATCH, LENGTH, RATE = 8, 256, 1e-4


def write_rows(path: Path) -> None:
    """The demo's single exchanges as prompt and completion, in plain text: of a chat, TRL would learn what
    the template writes after the answer's end token as well."""
    lines = []
    for line in demo.data_file("train").read_text().splitlines():
        messages = json.loads(line)["messages"]
        if len(messages) == 2:
            question, answer = (message["content"] for message in messages)
            lines.append(json.dumps({"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"}))
    path.write_text("\n".join(lines) + "\n")


def run(command: list[str], folder: Path) -> str:
    """What a command prints; ends the benchmark when it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def ours(folder: Path, model: str, steps: int) -> tuple[float, list[float]]:
    """Steps per second and the loss of each step of `fmstune train`."""
    settings = {
        "max_steps": steps, "per_device_train_batch_size": BATCH, "learning_rate": RATE, "logging_steps": 1,
        "save_strategy": "no", "max_length": LENGTH,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"training.{key}={value}")]
    command = [str(BIN / "fmstune"), "train", "--model", model, "--data", "rows/train.jsonl", *sets]
    run([*command, "--output-dir", "ours", "--overwrite"], folder)
    events = [e for e in JournalReader(folder / "ours" / TRACKING_DIR / JOURNAL_NAME) if e.kind == "metrics"]
    losses = [event.values["loss"] for event in events if "loss" in event.values]
    (speed,) = [e.values["train_steps_per_second"] for e in events if "train_steps_per_second" in e.values]
    return speed, losses


def theirs(folder: Path, model: str, steps: int, *extra: str) -> tuple[float, list[float]]:
    """Steps per second and the loss of each step of `trl sft`."""
    command = [
        str(BIN / "trl"), "sft", "--model_name_or_path", model, "--dataset_name", "rows",
        "--max_steps", str(steps),
        "--per_device_train_batch_size", str(BATCH), "--learning_rate", str(RATE), "--logging_steps", "1",
        "--save_strategy", "no", "--max_length", str(LENGTH), "--bf16", "false", "--dtype", "float32",
        "--output_dir", "theirs", *extra,
    ]  # fmt: skip
    printed = run(command, folder)  # its state is saved with checkpoints only, which would cost time
    losses = [float(value) for value in re.findall(r"'loss': '?([\d.e+-]+)", printed)]
    (speed,) = re.findall(r"'train_steps_per_second': '?([\d.e+-]+)", printed)
    return float(speed), losses


def main() -> None:
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        write_rows(folder / "rows" / "train.jsonl")
        if len(sys.argv) > 1:
            model = str(Path(sys.argv[1]).resolve())
        else:
            model = str(folder / "model")
            demo.build_model().save_pretrained(model)
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(demo.model_dir()).save_pretrained(model)
        speed, losses = ours(folder, model, steps)
        print(f"fmstune train                            {speed:7.3f} steps/s")
        for label, extra in (
            ("trl sft", []),
            ("trl sft --gradient_checkpointing false", ["--gradient_checkpointing", "false"]),
        ):
            peer, peer_losses = theirs(folder, model, steps, *extra)
            apart = max(abs(a - b) for a, b in zip(losses, peer_losses, strict=True))
            print(
                f"{label:<40} {peer:7.3f} steps/s   fmstune is {speed / peer:5.2f} x   "
                f"losses at most {apart:.0e} apart (printed with 4 digits)"
            )


if __name__ == "__main__":
    main()
