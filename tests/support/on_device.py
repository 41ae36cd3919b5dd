"""Real commands on a device, a model that is large enough for it, and the metrics of a run."""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune import demo
from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR

STEPS = 8
LONGEST_COMMAND = 240

Row = Callable[..., None]
"""Adds a row to the table: the case, the result, the losses, and the numbers of the last three columns."""


@dataclass(frozen=True)
class Device:
    """Where the cases run: `cuda`, with a model of some 270 million weights, or `cpu`, with the demo's."""

    kind: str
    name: str
    model: Path
    rows: Path
    pairs: Path
    """Preference pairs, in the format of DPO."""
    length: int
    """The maximum number of tokens per row."""

    @property
    def is_gpu(self) -> bool:
        """Whether it is a CUDA device."""
        return self.kind == "cuda"


@dataclass(frozen=True)
class Seen:
    """The content of a run's journal: the loss of each step and the last value of each metric by stage and
    name; plus the printed output and the seconds of the whole command."""

    losses: tuple[float, ...]
    metrics: dict[tuple[str, str], float]
    printed: str
    seconds: float
    logged: tuple[float, ...] = ()
    """When each of these losses was recorded, in Unix seconds."""

    @property
    def speed(self) -> float:
        """Steps per second."""
        return speed(self.logged)

    @property
    def peak(self) -> float:
        """The measured peak memory, in GB."""
        return self.metrics["train", "peak_memory"] / 1e9

    @property
    def estimated(self) -> float:
        """The peak that was estimated before the run, in GB."""
        return self.metrics["train", "estimated_memory"] / 1e9


def make_model(folder: Path, *, large: bool) -> Path:
    """The demo's model, or a Llama with some 270 million random weights and a vocabulary of typical size."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(demo.model_dir())
    if large:
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32768, hidden_size=1024, intermediate_size=2816, num_hidden_layers=16,
                num_attention_heads=16, num_key_value_heads=8, max_position_embeddings=4096,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
    else:
        model = demo.build_model()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int, exchanges: int, *, alike: bool = False) -> Path:
    """The demo's single exchanges as prompt and completion, with up to `exchanges` of them in the prompt, or,
    if `alike`, exactly as many in total. They are plain text: of a chat, TRL would also train on what the
    template writes after the end token of the answer."""
    chance = random.Random(0)
    lines = [json.loads(line)["messages"] for line in demo.data_file("train").read_text().splitlines()]
    single = [messages for messages in lines if len(messages) == 2]
    with path.open("w") as file:
        for _ in range(count):
            told = [
                chance.choice(single) for _ in range(exchanges if alike else chance.randint(1, exchanges))
            ]
            asked = [(question["content"], answer["content"]) for question, answer in told]
            text = "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in asked)
            prompt, _, completion = text.rpartition("Answer:")
            file.write(json.dumps({"prompt": f"{prompt}Answer:", "completion": completion}) + "\n")
    return path


def write_pairs(path: Path, count: int) -> Path:
    """Preference pairs: the demo's answer is chosen over that to another question."""
    chance = random.Random(0)
    lines = [json.loads(line)["messages"] for line in demo.data_file("train").read_text().splitlines()]
    single = [messages for messages in lines if len(messages) == 2]
    with path.open("w") as file:
        for prompt, answer in (chance.choice(single) for _ in range(count)):
            other = chance.choice([each[1] for each in single if each[1] != answer])
            row = {"prompt": [prompt], "chosen": [answer], "rejected": [other]}
            file.write(json.dumps(row) + "\n")
    return path


def zero_config(path: Path, stage: int) -> Path:
    """DeepSpeed's configuration of a stage, with the rest left to transformers."""
    sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}, **dict.fromkeys(sizes, "auto")}))
    return path


def run(command: list[str], folder: Path, *, code: int = 0, **environment: str) -> tuple[str, float]:
    """What a command prints on both streams, and its seconds. Fails on a different exit code."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_COMMAND,
        check=False,
    )
    assert done.returncode == code, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout, time.monotonic() - began


def train(device: Device, folder: Path, *arguments: str, code: int = 0, out: str = "out") -> Seen:
    """Run `fmstune train` on the device."""
    command = ["fmstune", "train", "--model", str(device.model), "--output-dir", out]
    if "--method" not in arguments:
        command += ["--data", str(device.rows)]
    printed, seconds = run([*command, *arguments], folder, code=code)
    return seen(folder / out, printed, seconds) if code == 0 else Seen((), {}, printed, seconds)


def speed(logged: Sequence[float]) -> float:
    """Steps per second by the times of their logs: the median, without the first ten, in which kernels are
    loaded and tuned."""
    times = logged[10:] if len(logged) > 20 else logged
    return 1 / statistics.median(after - before for before, after in itertools.pairwise(times))


def seen(directory: Path, printed: str = "", seconds: float = 0.0) -> Seen:
    """The content of the journal of a run in this directory."""
    losses: list[float] = []
    logged: list[float] = []
    metrics: dict[tuple[str, str], float] = {}
    for event in JournalReader(directory / TRACKING_DIR / JOURNAL_NAME):
        if event.kind != "metrics":
            continue
        if event.stage == "train" and "loss" in event.values:
            losses.append(float(event.values["loss"]))
            logged.append(event.time)
        metrics |= {(event.stage or "", name): value for name, value in event.values.items()}
    return Seen(tuple(losses), metrics, printed, seconds, tuple(logged))


def arguments(device: Device, **on_a_gpu: Any) -> list[str]:
    """What all runs have in common: a few steps without interruption, in float32."""
    common: dict[str, Any] = {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "logging_steps": 1, "eval_strategy": "no",
        "save_strategy": "no", "learning_rate": 1e-4, "warmup_steps": 0, "lr_scheduler_type": "constant",
        "max_length": device.length, "bf16": False,
    }  # fmt: skip
    return sets(**common, **on_a_gpu if device.is_gpu else {})


def sets(**values: Any) -> list[str]:
    """`--set training.NAME=VALUE` for each, as TOML."""
    written = {
        name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()
    }
    return [part for name, value in written.items() for part in ("--set", f"training.{name}={value}")]
