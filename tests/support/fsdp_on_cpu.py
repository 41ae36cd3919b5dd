"""FSDP on CPUs: real FSDP in real processes, with gloo.

Accelerate shards a model only over GPUs. On CPUs it ignores its FSDP plugin, and fmstune refuses the setting.
Two things are therefore changed in a training process: the kind of distributed training that accelerate
detects, and this refusal. TRL's LM head is used as on GPUs, too. Everything after that is what runs on GPUs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HANGS = 200.0
"""Seconds after which the processes wait for each other, forever. A run takes three."""
_STARTUP = "from tests.support.fsdp_on_cpu import shard_on_cpus\nshard_on_cpus()\n"


def train_sharded(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`fmstune train` with FSDP, in a process of its own or, with `--nproc`, in several."""
    from tests.support.commands import ROOT, fmstune

    startup = folder / "startup"
    startup.mkdir(exist_ok=True)
    (startup / "sitecustomize.py").write_text(_STARTUP)
    sharded = ["--set", "training.fsdp=true", *arguments]
    variables = {"PYTHONPATH": f"{startup}{os.pathsep}{ROOT}"}
    return fmstune("train", *sharded, cwd=folder, timeout=_HANGS, **variables)


def require_same_weights(folder: Path, setting: str, tolerance: float) -> None:
    """Two steps of the demo with a setting, sharded over two processes, train the weights of one process."""
    import torch
    from safetensors.torch import load_file

    from tests.support.commands import fmstune

    how = ["--model", "demo", "--data", "demo", "--set", "data.max_rows=16", "--max-steps", "2"]
    how += ["--set", setting, "--set", 'training.eval_strategy="no"', "--set"]
    batch = "training.per_device_train_batch_size"
    plain = fmstune("train", "--output-dir", "plain", *how, f"{batch}=4", cwd=folder)
    assert plain.returncode == 0, plain.stderr
    found = train_sharded(folder, "--nproc", "2", "--output-dir", "sharded", *how, f"{batch}=2")
    assert found.returncode == 0, found.stderr
    mine, theirs = (load_file(folder / each / "model.safetensors") for each in ("sharded", "plain"))
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=tolerance, msg=name)


def shard_on_cpus() -> None:
    """Let FSDP shard a model over CPUs in this process."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    import fmstune.system.device as device
    from fmstune.training.speed import lm_head

    state: Any = AcceleratorState
    begin, problems = state.__init__, device._problems

    def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and "fsdp_plugin" not in vars(self):  # what it does on GPUs
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    def kind(self: Any) -> Any:
        sharded = vars(self).get("fsdp_plugin") is not None
        return DistributedType.FSDP if sharded else vars(self)["distributed_type"]

    def detect(self: Any, found: Any) -> None:
        vars(self)["distributed_type"] = found

    def accepted(config: Any) -> Iterator[str]:
        return (each for each in problems(config) if "training.fsdp shards" not in each)

    state.__init__ = begin_sharded
    state.distributed_type = property(kind, detect)
    device._problems = accepted
    lm_head._ends_with_its_head = lambda model: False
