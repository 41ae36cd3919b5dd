"""The communication of a step between processes, measured once by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.resources.source import MB, Figures

_STEP = 3
"""The first steps of a process set up connections and buckets."""
_BACKENDS = ("gloo:", "nccl:", "mpi:", "ucc:", "xccl:", "hccl:")
_BYTES = {"double": 8, "long": 8, "float": 4, "int": 4, "half": 2, "bfloat16": 2, "short": 2, "c10::half": 2,
          "c10::bfloat16": 2, "char": 1, "signed char": 1, "unsigned char": 1, "bool": 1}  # fmt: skip


class Collectives(TrainerCallback):
    """Record, for one step of this process, the number of collective operations, the megabytes that it
    contributed, and the seconds that they took: on the device, if available, else on the host. Operations
    may overlap each other and the computation, so they can take longer than the step.

    Only for several processes. In a run of fewer than three steps the last one is measured.
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
        except RuntimeError:  # the user's own profiler is active
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
    """The totals of a profiled step's events."""
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
