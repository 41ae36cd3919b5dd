"""Preparing chats against TRL's own preparation: `python -m tests.benchmarks.preparing_chats [MODEL] [ROWS]`.

Both read the same file of two-turn conversations, and create token ids and labels, each in a new process,
interleaved; imports are not counted. The rows have few distinct words, which favours looking up words. TRL is
run with one process and with as many as there are processors (`dataset_num_proc`), and the better result
counts. Wall-clock times are only meaningful on an idle machine: CPU seconds, children included, are printed
next to them.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.results import multiple, record

ROUNDS = 3
WORDS = re.findall(
    r"\w+",
    "the a of model data train loss step learn run city house river light paper green fast slow small large "
    "answer question tell me about how why what when some more than with from into over under because",
)

_TIMED = """
import os, sys, time
began, spent = time.perf_counter(), sum(os.times()[:4])
{work}
print("RESULT", time.perf_counter() - began, sum(os.times()[:4]) - spent, len(rows), flush=True)
"""
_OURS = """
import torch, datasets, fmstune.data.cache
from transformers import AutoTokenizer
from fmstune.config.schema.data import DataConfig, DataSource
from fmstune.data.cache import prepare_once
using = AutoTokenizer.from_pretrained({model!r})
config = DataConfig(train=(DataSource({data!r}),), cache={cache})
""" + _TIMED.format(work="rows = prepare_once(config, using, 1024, 0, worth=0).train")
_THEIRS = """
import datasets, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
using = AutoTokenizer.from_pretrained({model!r})
model = AutoModelForCausalLM.from_config(
    __import__("transformers").AutoConfig.from_pretrained({model!r}, num_hidden_layers=1)
)
args = SFTConfig(
    {out!r}, report_to="none", use_cpu=True, bf16=False, dataset_num_proc={processes}, max_length=1024
)
""" + _TIMED.format(
    work='given = datasets.load_dataset("json", data_files={data!r}, split="train")\n'
    "rows = SFTTrainer(model, args, train_dataset=given, processing_class=using).train_dataset"
)


def write_chats(path: Path, rows: int) -> None:
    chance = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(least, most))).capitalize() + "."

    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            turns = [("user", 8, 30), ("assistant", 15, 80)] * 2
            messages = [{"role": role, "content": text(least, most)} for role, least, most in turns]
            file.write(json.dumps({"messages": messages}) + "\n")


def timed(code: str, folder: Path, name: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds of the timed part."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(folder / name), "FMSTUNE_CACHE": str(folder / "kept"), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        sys.exit(done.stderr[-3000:])
    return float(found[0][1]), float(found[0][2])


def main() -> None:
    model = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else ""
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 6_000
    processes = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not model:
            from fmstune import demo

            model = str(demo.model_dir())
        data = folder / "chats.jsonl"
        write_chats(data, count)
        known = {"model": model, "data": str(data), "out": str(folder / "out")}
        codes = {
            "fmstune": _OURS.format(**known, cache=False),
            "trl, one process": _THEIRS.format(**known, processes=None),
            f"trl, {processes} processes": _THEIRS.format(**known, processes=processes),
        }
        taken: dict[str, list[tuple[float, float]]] = {label: [] for label in codes}
        for turn in range(ROUNDS):
            for number, (label, code) in enumerate(codes.items()):
                taken[label].append(timed(code, folder, f"cache-{turn}-{number}"))
        timed(_OURS.format(**known, cache=True), folder, "first")
        again = timed(_OURS.format(**known, cache=True), folder, "again")
    medians = {
        label: [statistics.median(each) for each in zip(*found, strict=True)]
        for label, found in taken.items()
    }
    wall, spent = (min(medians[label][which] for label in list(codes)[1:]) for which in (0, 1))
    for label, (seconds, cpu) in medians.items():
        print(
            f"{label:<20} {seconds / count * 1e3:6.3f} ms a row ({cpu / count * 1e3:6.3f} ms CPU)   "
            f"TRL's best takes {wall / seconds:5.2f} x ({spent / cpu:5.2f} x the CPU time)"
        )
    seconds, cpu = medians["fmstune"]
    a_row = f"{1e3 * cpu / count:.2f} ms a row"
    record(
        "preparing chats of two turns",
        "`trl sft`, the better of one process and one for each processor",
        f"{multiple(wall / seconds)} as fast, {multiple(cpu / spent)} its CPU time ({a_row})",
    )
    print(f"fmstune, from its cache: {again[0]:.2f} s for {count:,} rows ({again[1]:.2f} s CPU)")


if __name__ == "__main__":
    main()
