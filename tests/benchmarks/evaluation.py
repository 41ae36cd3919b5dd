"""An eval against TRL's own command, and answers to several prompts in a batch against one at a time with
transformers: `python -m tests.benchmarks.evaluation [MODEL] [--rows N] [--rounds N]`.

Both commands train two steps and evaluate after each, on the same held-out rows of 60 to 210 tokens, in
batches of eight; the seconds are those that they report, the losses those before and after. The prompts are
answered with 48 tokens each, by the untrained model. Without MODEL, the demo's is used.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.models.generate import generate_texts
from fmstune.system.threads import processors
from tests.benchmarks.results import multiple, record
from tests.benchmarks.train_speed import BIN, LENGTH, demo_in, named, write_rows

COMMON = {
    "max_steps": 2, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 8,
    "learning_rate": 1e-4, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
    "save_strategy": "no", "max_length": LENGTH,
}  # fmt: skip
PROMPTS, TOKENS = 8, 48
Evaluated = tuple[list[float], list[float]]
"""The seconds of each eval, and the losses."""


def ours(folder: Path, model: str) -> Evaluated:
    sets = [part for name, value in COMMON.items() for part in ("--set", f"training.{name}={value}")]
    command = [
        "train",
        "--model",
        model,
        "--data",
        "rows/train.jsonl",
        "--eval-data",
        "rows/test.jsonl",
        *sets,
    ]
    run([str(BIN / "fmstune"), *command, "--output-dir", "ours", "--overwrite", "--plain"], folder)
    events = JournalReader(folder / "ours" / TRACKING_DIR / JOURNAL_NAME)
    found = [event.values for event in events if event.kind == "metrics" and event.stage == "eval"]
    taken = [values["runtime"] for values in found if "runtime" in values]
    return taken, [values["loss"] for values in found if "loss" in values]


def theirs(folder: Path, model: str) -> Evaluated:
    given = [part for name, value in COMMON.items() for part in (f"--{name}", str(value))]
    given += ["--bf16", "false", "--dtype", "float32", "--gradient_checkpointing", "false"]
    command = [
        "sft",
        "--model_name_or_path",
        model,
        "--dataset_name",
        "rows",
        "--output_dir",
        "theirs",
        *given,
    ]
    said = run([str(BIN / "trl"), *command], folder, OMP_NUM_THREADS=str(processors().count))
    taken, losses = (re.findall(rf"'eval_{name}': '?([\d.e+-]+)", said) for name in ("runtime", "loss"))
    return list(map(float, taken)), list(map(float, losses))


def run(command: list[str], folder: Path, **variables: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


def answered(model: Any, tokenizer: Any, rounds: int) -> tuple[float, float]:
    """The seconds for all prompts in a batch, and one after another."""
    prompts = [f"{text} " * 3 for text in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
    model.generation_config.min_new_tokens = TOKENS  # equally many for both
    together, alone = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        generate_texts(model, tokenizer, prompts[:PROMPTS], TOKENS)
        together.append(time.perf_counter() - began)
        began = time.perf_counter()
        with torch.no_grad():
            for prompt in prompts[:PROMPTS]:
                ids = tokenizer(prompt, return_tensors="pt")
                model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        alone.append(time.perf_counter() - began)
    return statistics.median(together), statistics.median(alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        write_rows(folder / "rows/train.jsonl", long=True)
        write_rows(folder / "rows/test.jsonl", long=True)
        model = str(Path(asked.model).absolute()) if asked.model else demo_in(folder / "model")
        runs: dict[str, list[Evaluated]] = {"fmstune": [], "trl": []}
        for _ in range(asked.rounds):
            runs["fmstune"].append(ours(folder, model))
            runs["trl"].append(theirs(folder, model))
        medians = {
            name: statistics.median(second for taken, _ in each for second in taken)
            for name, each in runs.items()
        }
        pairs = zip(runs["fmstune"][0][1], runs["trl"][0][1], strict=True)
        apart = max(abs(one - other) for one, other in pairs)
        rows = sum(1 for _ in (folder / "rows/test.jsonl").open())
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        together, alone = answered(loaded, AutoTokenizer.from_pretrained(model), asked.rounds)
    print(
        f"an evaluation on {rows} rows: fmstune {medians['fmstune']:.2f} s, trl sft {medians['trl']:.2f} s: "
        f"{medians['trl'] / medians['fmstune']:.2f} x as fast; losses at most {apart:.0e} apart"
    )
    record(
        f"an evaluation of {named(asked.model)} on {rows} rows",
        "`trl sft`",
        f"{multiple(medians['trl'] / medians['fmstune'])} as fast; losses within {apart:.0e}",
    )
    record(
        f"`fmstune generate`, {PROMPTS} answers of {TOKENS} tokens by {named(asked.model)}",
        "transformers, one after another",
        f"{multiple(alone / together)} as fast",
    )
    print(
        f"{PROMPTS} answers of {TOKENS} tokens: together {together:.2f} s, one by one {alone:.2f} s: "
        f"{alone / together:.2f} x as fast"
    )


if __name__ == "__main__":
    main()
