"""Training steps against TRL's own command and a bare padded PyTorch loop: `python -m
tests.benchmarks.train_speed [MODEL] [--rows long] [--peers bare,fused,trl,checkpointed]`; with `--way lora`
and `--way dpo` only against TRL.

`fmstune train` and each peer train the same model on the same rows in the same order with the same settings,
in short interleaved runs, so that other load on the machine affects all of them. For each step after the
first ones, whose shapes are new, the wall-clock time (median) and the CPU time of the command and its
children (mean) are printed, and the difference of the losses. If all weights are trained, it also prints the
share of the processor's own speed in matrix products that a whole step reaches. Without MODEL, the demo's is
used. Short rows have 20 to 30 tokens, in batches of eight; long ones 60 to 210, most of them trained, in
batches of four. Two rounds of `fmstune` and `fused` on SmolLM2 take about two minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from fmstune import demo
from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.system.threads import processors
from tests.benchmarks.results import multiple, record

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
LENGTH, RATE = 256, 1e-4
BATCHES = {"short": 8, "long": 4}
MOST_EXCHANGES = 8


WAYS = {
    "full": ("sft", (), ()),
    "lora": (
        "sft",
        ("--lora", "--set", "lora.r=16", "--set", "lora.alpha=32", "--set", "lora.dropout=0",
         "--set", "lora.target_modules=all-linear"),
        ("--use_peft", "--lora_r", "16", "--lora_alpha", "32", "--lora_dropout", "0",
         "--lora_target_modules", "all-linear"),
    ),
    "dpo": ("dpo", (), ()),
}  # fmt: skip
"""The method, and the arguments added to the commands of fmstune and TRL."""


def write_rows(path: Path, *, long: bool, pairs: bool = False) -> None:
    """The demo's single exchanges as prompt and completion, or several in one, as plain text: of a chat, TRL
    would also train on what the template writes after the end token of the answer. With `pairs`, each answer
    is preferred over that to another question."""
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
        if pairs:
            other = chance.choice([each for _, each in exchanges if each != answer])
            row |= {"chosen": row.pop("completion"), "rejected": f" {other}{text}"}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Run:
    """The wall-clock and CPU seconds of each measured step, and the loss of every step."""

    wall: list[float]
    cpu: list[float]
    losses: list[float]
    tokens: float = math.nan
    """Of a measured step, on average; `trained` are those of the answers."""
    trained: float = math.nan


def stepped(command: list[str], folder: Path, sign: str, skip: int, **variables: str) -> Run:
    """Run a command that prints a line for each step, in which `sign` matches the loss. Ends the benchmark if
    it fails."""
    environment = {
        **variables, **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    marks: list[tuple[float, float]] = []
    losses: list[float] = []
    printed: list[str] = []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        assert child.stdout is not None
        process = psutil.Process(child.pid)
        for line in child.stdout:
            printed.append(line)
            found = re.search(sign, line)
            if found:
                marks.append((time.perf_counter(), cpu_seconds(process)))
                losses.append(float(found.group(1)))
    if child.returncode:
        sys.exit(f"{' '.join(command)}\n{''.join(printed)[-3000:]}")
    kept = list(zip(marks[skip - 1 :], marks[skip:], strict=False))
    wall, cpu = ([after[part] - before[part] for before, after in kept] for part in (0, 1))
    return Run(wall, cpu, losses)


def cpu_seconds(process: psutil.Process) -> float:
    """The CPU seconds of a process and of everything that it started."""
    taken = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            times = each.cpu_times()
            taken += times.user + times.system
    return taken


def ours(folder: Path, model: str, steps: int, batch: int, skip: int, way: str) -> Run:
    method, added, _ = WAYS[way]
    settings = {
        "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": RATE, "logging_steps": 1,
        "save_strategy": "no", "max_length": LENGTH,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"training.{key}={value}")]
    command = [
        str(BIN / "fmstune"),
        "train",
        "--model",
        model,
        "--data",
        "rows/train.jsonl",
        "--method",
        method,
        *sets,
        *added,
        "--plain",
    ]
    done = stepped([*command, "--output-dir", "ours", "--overwrite"], folder, r"^step .* loss (\S+)", skip)
    events = list(JournalReader(folder / "ours" / TRACKING_DIR / JOURNAL_NAME))
    logged = [event.values for event in events if event.kind == "metrics" and "num_tokens" in event.values]
    [data] = [event.values for event in events if event.kind == "params" and event.name == "data"]
    counted = [values["num_tokens"] for values in logged]
    tokens = (counted[-1] - counted[skip - 1]) / (steps - skip)
    trained = tokens * data["trained_tokens"] / data["tokens"]
    return Run(done.wall, done.cpu, [values["loss"] for values in logged], tokens, trained)


def trl(folder: Path, model: str, steps: int, batch: int, skip: int, way: str, *extra: str) -> Run:
    """With all threads: the default of `accelerate launch`, which TRL's command starts, is one."""
    command = [str(BIN / "trl"), *trl_arguments(model, steps, batch, way, *extra)]
    return stepped(command, folder, r"'loss': '?([\d.e+-]+)", skip, OMP_NUM_THREADS=str(processors().count))


def trl_arguments(model: str, steps: int, batch: int, way: str, *extra: str) -> list[str]:
    """Of TRL's own command line."""
    method, _, added = WAYS[way]
    return [
        method, "--model_name_or_path", model, "--dataset_name", "rows", "--max_steps", str(steps),
        "--per_device_train_batch_size", str(batch), "--learning_rate", str(RATE), "--logging_steps", "1",
        "--save_strategy", "no", "--max_length", str(LENGTH), "--bf16", "false", "--dtype", "float32",
        "--output_dir", "theirs", *added, *extra,
    ]  # fmt: skip


def bare(folder: Path, model: str, steps: int, batch: int, skip: int, way: str, *extra: str) -> Run:
    """Its threads wait like fmstune's. It trains all weights, on answers only."""
    assert way == "full"
    numbers = {"steps": steps, "batch": batch, "rate": RATE, "length": LENGTH}
    given = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.support.bare_loop", model, str(folder / "rows" / "train.jsonl")]
    return stepped([*command, *given, *extra], ROOT, r"^loss (\S+)", skip, GOMP_SPINCOUNT="20000")


PEERS = {
    "bare": ("a bare padded loop", bare, ()),
    "fused": ("a bare padded loop, AdamW(fused=True)", bare, ("--fused",)),
    "trl": ("trl sft --gradient_checkpointing false", trl, ("--gradient_checkpointing", "false")),
    "checkpointed": ("trl sft", trl, ()),
}


IN_TABLE = {
    "bare": "a bare padded loop", "fused": "a bare padded loop with fused AdamW",
    "trl": "`trl {method}` without gradient checkpointing", "checkpointed": "`trl {method}`",
    "full": "", "lora": "LoRA, ", "dpo": "DPO, ", "short": "20 to 30 tokens a row",
    "long": "60 to 210 tokens a row",
}  # fmt: skip
"""How README's table names the choices."""


def named(model: str | None) -> str:
    """How README's table names a model: the demo, or by its folder."""
    return Path(model).name if model not in (None, "demo") else "the demo"


def typed(asked: argparse.Namespace, extra: tuple[str, ...]) -> str:
    """TRL's command as it is typed."""
    arguments = trl_arguments("MODEL", asked.steps, BATCHES[asked.rows], asked.way, *extra)
    return f"OMP_NUM_THREADS={processors().count} trl {' '.join(arguments)}"


def joined(runs: list[Run]) -> tuple[float, float]:
    """The median wall-clock and the mean CPU seconds of a step."""
    wall = statistics.median(second for run in runs for second in run.wall)
    return wall, statistics.mean(second for run in runs for second in run.cpu)


def work_of_step(model: str, tokens: float, trained: float) -> float:
    """The floating-point operations of the products with weights in one step, forward and backward: two for
    each weight and token, three times, the head's for trained tokens only. Attention is not counted."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    head = built.get_output_embeddings()
    layers = [each for each in built.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    weights = sum(each.weight.numel() for each in layers)
    return float(6 * (weights * tokens + head.weight.numel() * trained))


def product_speed() -> float:
    """Floating-point operations a second in a product of two matrices of 1024 × 1024, with all threads."""
    import torch

    one, other = torch.randn(2, 1024, 1024)
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        one @ other
        taken.append(time.perf_counter() - began)
    return 2 * 1024**3 / statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip", type=int, default=3, help="first steps of each run that do not count")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", choices=BATCHES, default="short")
    parser.add_argument("--way", choices=WAYS, default="full")
    parser.add_argument("--peers", help="of " + ", ".join(PEERS))
    asked = parser.parse_args()
    all_peers = [each for each in PEERS if asked.way == "full" or PEERS[each][1] is trl]
    names = asked.peers.split(",") if asked.peers else all_peers
    if set(names) - set(all_peers) or not 0 < asked.skip < asked.steps:
        parser.error(f"--peers takes {', '.join(all_peers)}; --skip is at least 1 and less than --steps")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        write_rows(folder / "rows" / "train.jsonl", long=asked.rows == "long", pairs=asked.way == "dpo")
        model = str(Path(asked.model).absolute()) if asked.model else demo_in(folder / "model")
        shape = (folder, model, asked.steps, BATCHES[asked.rows], asked.skip, asked.way)
        own: list[Run] = []
        speeds = [product_speed()]
        theirs: dict[str, list[Run]] = {each: [] for each in names}
        for _ in range(asked.rounds):
            own.append(ours(*shape))
            for each in names:
                _, peer, extra = PEERS[each]
                theirs[each].append(peer(*shape, *extra))
            speeds.append(product_speed())
        work = work_of_step(model, own[0].tokens, own[0].trained)
    wall, cpu = joined(own)
    print(f"{'fmstune train':<40} {wall:7.3f} s a step, {cpu:7.3f} s of CPU time")
    if asked.way == "full":
        speed = statistics.median(speeds)
        print(
            f"{own[0].tokens:.0f} tokens a step, {own[0].trained:.0f} trained: {work / 1e9:.0f} GFLOP in "
            f"products with weights; at {speed / 1e9:.0f} GFLOP/s, as in a product of 1024 x 1024, that is "
            f"{work / speed / wall:.0%} of the step"
        )
    for each in names:
        _, peer, extra = PEERS[each]
        peer_wall, peer_cpu = joined(theirs[each])
        pairs = zip(own[0].losses, theirs[each][0].losses, strict=True)
        apart = max(abs(one - other) for one, other in pairs)
        ratios = f"fmstune is {peer_wall / wall:.2f} x as fast, {peer_cpu / cpu:.2f} x by CPU time"
        print(
            f"{PEERS[each][0]:<40} {peer_wall:7.3f} s a step, {peer_cpu:7.3f} s of CPU time: {ratios}; "
            f"losses at most {apart:.0e} apart (printed with 4 digits)"
        )
        record(
            f"a step of {named(asked.model)}, {IN_TABLE[asked.way]}{IN_TABLE[asked.rows]}",
            IN_TABLE[each].format(method=WAYS[asked.way][0]),
            f"{multiple(peer_wall / wall)} as fast ({1e3 * wall:.0f} ms); losses within {apart:.0e}",
            "" if peer is bare else typed(asked, extra),
        )


def demo_in(folder: Path) -> str:
    """The demo's model and tokenizer, as a folder that all of them can load."""
    from transformers import AutoTokenizer

    demo.build_model().save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo.model_dir()).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
