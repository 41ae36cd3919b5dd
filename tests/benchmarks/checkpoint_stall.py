"""How long training stalls for a checkpoint, against a bare copy of its content and against writing it
synchronously as transformers does: `python -m tests.benchmarks.checkpoint_stall [MODEL]`.

At each checkpoint of one run the three are measured one after another. Without MODEL, the demo's is used.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import Trainer

from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.run.run import run
from fmstune.training.methods.sft import FineTuner
from tests.benchmarks.results import multiple, record
from tests.benchmarks.train_speed import named

WARM = 1
"""Checkpoints before the first one that is measured."""
taken: dict[str, list[float]] = {"copy": [], "transformers": [], "fmstune": [], "writing": []}


def timed(what: str, call: Callable[[], Any]) -> None:
    _finish_kernels()
    began = time.perf_counter()
    call()
    _finish_kernels()
    taken[what].append(time.perf_counter() - began)


def _finish_kernels() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def copied(trainer: Any) -> None:
    """Copies of the saved weights and the optimizer state in main memory."""
    states = trainer.optimizer.state_dict()["state"].values()
    weights = [weight.detach() for weight in trainer.model.parameters() if weight.requires_grad]
    _ = [torch.empty_like(each, device="cpu").copy_(each) for each in weights]
    _ = [torch.empty_like(each, device="cpu").copy_(each) for state in states for each in state.values()]


class Measured(FineTuner):
    """Measures each checkpoint except the last one, during which no training continues."""

    def write_checkpoint(self, model: Any, trial: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            return
        self.finish_writing()
        os.sync()
        timed("copy", lambda: copied(self))
        timed("transformers", lambda: Trainer._save_checkpoint(self, model, trial))
        shutil.rmtree(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))
        os.sync()
        timed("fmstune", lambda: super(Measured, self).write_checkpoint(model, trial))
        timed("writing", self.finish_writing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--lora", action="store_true")
    asked = parser.parse_args()
    model = asked.model if asked.model == "demo" else str(Path(asked.model).absolute())
    import fmstune.training.methods.sft as method

    method.TRAINED = type(method.TRAINED)(method.TRAINED.arguments, Measured)
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"model.path={model}", "data.train=demo", "data.max_rows=64",
            f"lora.enabled={asked.lora}".lower(),
            f"training.max_steps={asked.checkpoints + WARM + 1}",
            "training.save_strategy=steps", "training.save_steps=1",
            "training.eval_strategy=no", "training.per_device_train_batch_size=1", "training.max_length=64",
            "resources.interval=0", "run.rehearse=never",
        ]  # fmt: skip
        config = load(None, [("training.output_dir", f"{folder}/out", "--output-dir")], settings)
        with open(os.devnull, "w") as nowhere:
            run(config, RunConsole(Console(file=nowhere)))
    medians = {name: statistics.median(times[WARM:]) for name, times in taken.items()}
    copy, plain, ours = (medians[name] for name in ("copy", "transformers", "fmstune"))
    print(f"a checkpoint of {asked.model}{' (LoRA)' if asked.lora else ''}, medians of {asked.checkpoints}:")
    still, beside = "ms of standing still", f"then {medians['writing'] * 1e3:.0f} ms of writing beside"
    print(f"  a bare copy        {copy * 1e3:8.1f} ms")
    print(f"  transformers' way  {plain * 1e3:8.1f} {still}")
    print(f"  fmstune            {ours * 1e3:8.1f} {still}, {beside}")
    record(
        f"a checkpoint of {named(asked.model)} with its optimizer: the training stands still",
        "a bare copy of it in memory",
        f"{multiple(ours / copy)} ({ours * 1e3:.0f} ms); {multiple(ours / plain)} transformers' way",
    )
    print(f"  fmstune's is {ours / copy:.2f} x the copy, and {ours / plain:.2f} x transformers'")


if __name__ == "__main__":
    main()
