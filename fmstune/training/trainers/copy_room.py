"""Whether main memory has room for a checkpoint's copy during the training steps."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from fmstune.system import memory
from fmstune.system.memory import format_bytes
from fmstune.training.memory.estimate import Workload, estimate
from fmstune.training.memory.parts import optimizer_tensors
from fmstune.training.memory.workload import workload
from fmstune.training.trainers.disk import saved_weights
from fmstune.training.trl_compat.saving import pinned_size
from fmstune.training.tuned_trainer import TunedTrainer

_AS_LONG = 0.9
"""A batch of this share of the longest one shows how much memory the steps will take."""


class CopyRoom:
    """The peak memory of the training steps without a copy: measured, and estimated while all batches so far
    were short."""

    def __init__(self, trainer: TunedTrainer) -> None:
        self._trainer = trainer
        self._measured = self._tokens = self._kept = 0
        held = sum(each.numel() * each.element_size() for each in trainer.model.parameters())
        reference = trainer.ref_model.parameters() if trainer.ref_model is not None else ()
        held += sum(each.numel() * each.element_size() for each in reference)
        states = sum(each.numel() * each.element_size() for each in optimizer_tensors(trainer.optimizer))
        on_cpu = trainer.args.device.type == "cpu"
        self._program = max(0, memory.in_use() - held - states) if on_cpu else 0
        memory.recent_peak()

    def count_batch(self, inputs: Any) -> None:
        """Count the tokens of a batch."""
        if isinstance(inputs, Mapping):
            ids = [value for name, value in inputs.items() if str(name).endswith("input_ids")]
            tokens = sum(value.numel() for value in ids if isinstance(value, torch.Tensor))
            self._tokens = max(self._tokens, tokens)

    def held_copy(self, size: int) -> None:
        """Record that `size` bytes of the memory held since the last call were a copy. Each interval has its
        own peak: a copy that is freed before the peak of the steps is not part of it."""
        self._measured = max(self._measured, memory.recent_peak() - size)

    def count_pinned(self, size: int) -> None:
        """Record that `size` bytes of a copy's memory stay allocated for the next copy."""
        self._kept = max(self._kept, size)

    def obstacle(self, size: int) -> str | None:
        """Why a copy of this many bytes cannot be held during the steps; `None` if it can."""
        size = max(0, size - self._kept)
        steps = max(0, max(self._measured, self._estimated()) - memory.in_use())
        room = memory.main_memory()
        if size + steps <= room.available:
            return None
        beside = f", and the training steps {format_bytes(steps)} more" if steps else ""
        needed = f"a copy needs {format_bytes(size)} of memory{beside}"
        return f"{needed}; {room.limit} has {format_bytes(room.available)}"

    @functools.cached_property
    def _work(self) -> Workload | None:
        """Cached, as it reads the lengths of all rows."""
        return workload(self._trainer) if self._trainer.args.device.type == "cpu" else None

    def _estimated(self) -> int:
        work = self._work
        if work is None or self._tokens >= _AS_LONG * work.tokens:
            return 0
        return estimate(work, self._program).peak


def held(trainer: TunedTrainer) -> int:
    """The bytes of a checkpoint's contents in main memory: the saved weights and the optimizer state."""
    weights = saved_weights(trainer)
    states = [] if trainer.args.save_only_model else optimizer_tensors(trainer.optimizer)
    return sum(
        pinned_size(each) if each.is_cuda else each.numel() * each.element_size()
        for each in (*weights, *states)
    )
