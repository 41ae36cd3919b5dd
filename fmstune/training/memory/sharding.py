"""How a training is distributed over processes: which parts each one has in full, and which are sharded.

What FSDP's strategies and the stages of ZeRO shard: https://docs.pytorch.org/docs/stable/fsdp.html and
https://www.deepspeed.ai/tutorials/zero/.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmstune.text import in_series
from fmstune.training.tuned_trainer import TunedTrainer

_BUCKET = 500_000_000
"""DeepSpeed's default of `reduce_bucket_size`: https://www.deepspeed.ai/docs/config-json/."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """Over how many processes each part of a training is sharded; 1: each has a full copy."""

    method: str = ""
    processes: int = 1
    sharing: int = 1
    """How many of them use the same memory: on a CPU, all of a machine."""
    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    gathers_model: bool = False
    """Whether sharded weights are gathered for a whole step, instead of layer by layer."""
    buckets: bool = False
    """Whether the gradients are held twice, also in the buckets for their exchange."""
    master: bool = False
    """Whether the optimizer keeps 32-bit copies of 16-bit weights."""
    copies_weights: bool = False
    """Whether the optimizer keeps a copy of 32-bit weights, too."""
    collected: int = 0
    """The number of gradients for which DeepSpeed has buffers, to send them to other processes at once."""
    keeps_gradients: bool = False
    """Whether the memory of the gradients is kept between steps."""
    offloaded: frozenset[str] = frozenset()
    """Parts that a GPU's process keeps in main memory."""

    def line(self) -> str:
        """A readable line: `2 processes, each with all of it (DDP)`."""
        if self.processes == 1:
            return ""
        of = "" if self.sharing == self.processes else f" of {self.processes}"
        who = f"{self.sharing}{of} processes" if self.sharing > 1 else f"one of {self.processes} processes"
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        divided = [name for name, over in parts.items() if over > 1]
        if not divided:
            whole = f"{'each ' if self.sharing > 1 else ''}with all of it ({self.method})"
            return f"{who}, {whole}"
        over = max(parts.values())
        line = f"{who}; {self.method} divides {in_series(divided)} by {over}"
        if self.offloaded:
            line += f"; {in_series([name for name in parts if name in self.offloaded])} in main memory"
        return line


ALONE = Sharding()


def ddp(processes: int, sharing: int = 1) -> Sharding:
    """Each process has everything, and the gradients twice, also in DDP's buckets."""
    return Sharding("DDP", processes, sharing, buckets=True)


def fsdp(
    strategy: str, processes: int, sharing: int = 1, *, of_machine: int = 1, offload: bool = False
) -> Sharding:
    """FSDP by strategy, like `full_shard`; hybrid ones shard over the `of_machine` processes of one
    machine."""
    kind = strategy.lower().lstrip("_")
    if kind == "no_shard":
        return Sharding("FSDP without shards", processes, sharing)
    over = of_machine if kind.startswith("hybrid") else processes
    return Sharding(
        "FSDP",
        processes,
        sharing,
        weights=over,
        gradients=over,
        optimizer=over,
        gathers_model=kind in ("shard_grad_op", "hybrid_shard_zero2"),
        offloaded=frozenset(("weights", "gradients", "optimizer") if offload else ()),
    )


def zero(config: Mapping[str, Any], processes: int, sharing: int = 1, *, half: bool = False) -> Sharding:
    """DeepSpeed by its configuration; `half`: it trains in 16 bits."""
    table = config.get("zero_optimization") or {}
    stage = int(table.get("stage", 0))
    offloaded: set[str] = set()
    if stage >= 1 and _is_offloaded(table, "optimizer"):
        # From stage 2 on, each process only has gradients for its own shard of the optimizer.
        offloaded |= {"optimizer", "gradients"} if stage >= 2 else {"optimizer"}
    if stage == 3 and _is_offloaded(table, "param"):
        offloaded.add("weights")
    buffers = 0
    if stage >= 1 and table.get("contiguous_gradients", True):
        size = table.get("reduce_bucket_size", _BUCKET)
        buffers = int(size) if isinstance(size, (int, float)) else 0  # "auto" becomes a small one
        buffers *= 2 if stage < 3 and table.get("overlap_comm") is True else 1
    return Sharding(
        f"ZeRO stage {stage}",
        processes,
        sharing,
        weights=processes if stage >= 3 else 1,
        gradients=processes if stage >= 2 else 1,
        optimizer=processes if stage >= 1 else 1,
        master=half,
        copies_weights=stage >= 1 and not half,
        collected=buffers,
        keeps_gradients=stage == 3,
        offloaded=frozenset(offloaded),
    )


def sharding(trainer: TunedTrainer) -> Sharding:
    """How a built trainer distributes its training."""
    args, state = trainer.args, trainer.accelerator.state
    of_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    sharing = of_machine if args.device.type == "cpu" else 1
    kind = str(getattr(state.distributed_type, "value", state.distributed_type))
    if kind == "DEEPSPEED":
        config = state.deepspeed_plugin.deepspeed_config
        return zero(config, args.world_size, sharing, half=bool(args.bf16 or args.fp16))
    if args.world_size == 1:
        return ALONE
    if kind == "FSDP":
        plugin = state.fsdp_plugin
        offload = plugin.cpu_offload
        return fsdp(
            _strategy(plugin),
            args.world_size,
            sharing,
            of_machine=of_machine,
            # In version 1 a record, in version 2 one of two policies.
            offload=bool(getattr(offload, "offload_params", hasattr(offload, "pin_memory"))),
        )
    return ddp(args.world_size, sharing)


def _strategy(plugin: Any) -> str:
    if plugin.fsdp_version == 2:
        return "full_shard" if plugin.reshard_after_forward else "shard_grad_op"
    strategy = plugin.reshard_after_forward or plugin.sharding_strategy
    return str(getattr(strategy, "name", strategy))


def _is_offloaded(table: Mapping[str, Any], part: str) -> bool:
    return str((table.get(f"offload_{part}") or {}).get("device", "none")) != "none"
