"""What processes exchange in a step, measured once by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.resources.source import MB, Figures

_STEP = 3
"""The first steps of a process set connections and buckets up."""
_BACKENDS = ("gloo:", "nccl:", "mpi:", "ucc:", "xccl:", "hccl:")
_BYTES = {"double": 8, "long": 8, "float": 4, "int": 4, "half": 2, "bfloat16": 2, "short": 2, "c10::half": 2,
          "c10::bfloat16": 2, "char": 1, "signed char": 1, "unsigned char": 1, "bool": 1}  # fmt: skip


class Collectives(TrainerCallback):
    """Records, of one step of this process, how many collective operations it took part in, the megabytes
    that it brought to them, and the seconds that they took: those on the device, where they are there, and
    else those of the host. Operations may overlap each other and the computation, so that they can take more
    than the step did.

    For several processes alone. A run of fewer than three steps has its last one measured.
    """

    def __init__(self, record: Callable[[Figures, int], None]) -> None:
        self._record = record
        self._profiler: Any = None
        self._made = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._made += 1
        left = state.max_steps - state.global_step
        if args.world_size < 2 or self._made > _STEP or (self._made < _STEP and left > 1):
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available() and args.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        try:
            profiler.start()
        except RuntimeError:  # another profiler is at work, the user's
            self._made = _STEP
            return
        self._profiler, self._made = profiler, _STEP

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
            self._record(figures(profiler.profiler.kineto_results.events()), state.global_step)


def figures(events: Iterable[Any]) -> Figures:
    """What the events of a profiled step come to."""
    count, size, host, device = 0, 0, 0, 0
    for event in events:
        name = str(event.name())
        if name.startswith(_BACKENDS):
            count += 1
            host += event.duration_ns()
            size += _size(event)
        elif "ncclDevKernel" in name:
            device += event.duration_ns()
    return {
        "collectives": float(count),
        "collectives_mb": round(size / MB, 6),
        "collectives_seconds": round((device or host) / 1e9, 6),
    }


def _size(event: Any) -> int:
    total = 0
    for shape, kind in zip(event.shapes(), event.dtypes(), strict=False):
        values = 1 if shape else 0
        for width in shape:
            values *= width if isinstance(width, int) else 0
        total += values * _BYTES.get(str(kind).lower(), 4)
    return total
