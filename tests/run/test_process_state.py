"""A run through the Python API leaves no process-wide state behind, however it ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy
import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

import fmstune
from fmstune.errors import Interrupted
from fmstune.system.handlers import STOPPING

DEMO: dict[str, Any] = {
    "model.path": "demo", "data.train": "demo", "data.max_rows": 8, "training.max_steps": 1,
    "training.save_strategy": "no", "training.seed": 7, "training.output_dir": "out",
}  # fmt: skip


class AtTheStep(TrainerCallback):
    """Fails, or is interrupted, at the first step."""

    def __init__(self, end: str) -> None:
        self.end = end

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
        assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
        os.environ["MINE"], os.environ["MINE_BEFORE"] = "set by a callback", "changed"
        if self.end == "fails":
            raise ValueError("on purpose")
        if self.end == "interrupted":
            os.kill(os.getpid(), signal.SIGTERM)


def state(earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The state of this process. Of threads and processes, those that were there `earlier` may have ended
    since: they belong to other tests."""
    threads = threading.enumerate()
    processes = [child.pid for child in psutil.Process().children(recursive=True)]
    if earlier is not None:
        threads = [*earlier["threads"], *(each for each in threads if each not in earlier["threads"])]
        processes = [*earlier["processes"], *(each for each in processes if each not in earlier["processes"])]
    loggers = {
        name: logging.getLogger(name) for name in ("", "transformers", "trl", "datasets", "accelerate")
    }
    return {
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "random": (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "exact": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.cudnn_sdp_enabled(),
        ),
        "signals": [signal.getsignal(signum) for signum in (*STOPPING, signal.SIGCHLD)],
        "threads": threads,
        "processes": processes,
        "start": multiprocessing.get_start_method(allow_none=True),
        "hooks": (sys.excepthook, sys.stdout, sys.stderr, sys.path[:], sys.meta_path[:], Path.cwd()),
        "loggers": {name: (each.level, each.handlers[:], each.propagate) for name, each in loggers.items()},
        "telemetry": huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY,
        "bars": (transformers_logging._tqdm_active, datasets.is_progress_bar_enabled()),
    }


@pytest.mark.parametrize(
    ("method", "end"), [("sft", "finishes"), ("dpo", "fails"), ("kto", "interrupted"), ("reward", "finishes")]
)
def test_a_run_leaves_its_process_as_it_was(
    method: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16")  # the program's own
    monkeypatch.setenv("MINE_BEFORE", "as it was")
    monkeypatch.setenv("MINE", "")
    monkeypatch.delenv("MINE")
    more = {"training.full_determinism": True} if end == "fails" else {}
    if method in ("dpo", "sft"):
        more |= {"training.dataloader_num_workers": 1, "training.dataloader_persistent_workers": True}
    before = state()
    before["environment"] |= {"MINE": "set by a callback", "MINE_BEFORE": "changed"}

    def trained() -> None:
        fmstune.train(settings=DEMO | more | {"run.method": method}, callbacks=[AtTheStep(end)], quiet=True)

    if end == "finishes":
        trained()
    else:
        with pytest.raises(ValueError if end == "fails" else Interrupted):
            trained()
    assert state(before) == before
    assert accelerator.mixed_precision == Accelerator(mixed_precision="bf16").mixed_precision == "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_refused_call_draws_no_random_number() -> None:
    code = (
        "import random, fmstune; random.seed(0)\n"
        "try: fmstune.train(data_handler=5)\n"
        "except Exception as error: print(error)\n"
        "print(random.random())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    random.seed(0)
    assert float(done.stdout.split()[-1]) == random.random()
