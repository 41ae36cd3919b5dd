"""The memory of a run: an estimate before, the measured peak after it, and the remedy when it runs out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import Interrupted, RunError
from fmstune.launch.rank import is_lost_peer, launcher_is_stopped
from fmstune.system import memory
from fmstune.system.compiler import compile_failure
from fmstune.system.memory import Capacity, format_bytes
from fmstune.training.callbacks.stopping import StopCallback
from fmstune.training.memory.estimate import Estimate, Workload, estimate
from fmstune.training.memory.remedies import settings_that_fit, settings_to_try
from fmstune.training.memory.workload import workload
from fmstune.training.trainers.checkpoints import background_copy_size
from fmstune.training.trl_compat.steps import is_device_out_of_memory
from fmstune.training.tuned_trainer import TunedTrainer

_FAILED = ("std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory", "can't allocate memory")


_SURELY = 1.5
"""By how much an estimate must exceed the available memory to be trusted: its error is below a third."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The peak memory of a run, by its work, and the `room` for it, both in bytes including what is already
    used."""

    work: Workload
    needed: Estimate
    room: Capacity

    @property
    def fits(self) -> bool:
        """Whether it will fit, according to the estimate."""
        return self.needed.peak <= self.room.available

    @property
    def hopeless(self) -> bool:
        """Whether starting would end the process: without a GPU or a `ulimit` there is no error to catch,
        the kernel kills what uses too much, and perhaps something else first. The program's current memory
        is on both sides, and does not affect the rest."""
        if self.work.on_gpu or self.room.of_process:
            return False
        needed, free = self.needed.peak - self.needed.program, self.room.available - self.needed.program
        return needed > _SURELY * free

    def line(self) -> str:
        """A readable line: `about 2.1 GB of 24 GB (weights 538 MB, …; 2 processes, each with all of it
        (DDP))`."""
        counted = "; ".join(filter(None, [self.needed.line(), self.work.sharding.line()]))
        return f"about {format_bytes(self.needed.peak)} of {format_bytes(self.room.available)} ({counted})"

    def problem(self) -> str:
        """Why it will not fit, and what to change."""
        processes = self.work.sharding.sharing
        beside = f" for its {processes} processes" if processes > 1 else ""
        return (
            f"this run needs about {format_bytes(self.needed.peak)} of memory{beside}, and "
            f"{self.room.limit} has {format_bytes(self.room.available)} for it. "
            f"{settings_that_fit(self.work, self.room.available, self.needed.program // processes)}"
        )


def outlook(trainer: TunedTrainer, steps: int = 0) -> Outlook | None:
    """What a training of so many steps will need; `None` if unknown: other devices, other shapes of data.
    Checkpoints are copied if there is room for that."""
    work, device = workload(trainer), trainer.args.device
    if work is None or device.type not in ("cpu", "cuda"):
        return None
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        room = Capacity(free + torch.cuda.memory_reserved(device), "the GPU")
        return Outlook(work, estimate(work), room)
    in_use, free_here = memory.in_use(), memory.main_memory()
    processes = work.sharding.sharing
    free_together = free_here.available * (processes if free_here.of_process else 1)
    room = replace(free_here, available=processes * in_use + free_together)
    program = max(0, in_use - work.weights - work.reference)
    copying = replace(work, copied=background_copy_size(trainer, steps))
    found = Outlook(copying, estimate(copying, program=program), room)
    return found if found.fits else Outlook(work, estimate(work, program=program), room)


def peak_of_machine(trainer: TunedTrainer) -> int:
    """Like `peak`, on a CPU for all processes of this machine. All processes must call it."""
    args = trainer.args
    most = peak(args.device)
    if args.device.type != "cpu" or args.world_size == 1:
        return most
    machine = int(os.environ.get("GROUP_RANK", "0"))
    mine = torch.tensor([machine, most], dtype=torch.int64)
    found = [torch.zeros_like(mine) for _ in range(args.world_size)]
    torch.distributed.all_gather(found, mine)
    return sum(int(one[1]) for one in found if int(one[0]) == machine)


def require_room_for_weights(config: ModelConfig) -> None:
    """Raise `RunError` if the weights of a local model already exceed the memory: on a CPU the kernel would
    kill the process while it loads them, without a message."""
    files = list(Path(config.path).glob("*.safetensors")) if Path(config.path).is_dir() else []
    size, room = sum(file.stat().st_size for file in files), memory.main_memory()
    times = 1 if room.of_process else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if times * size > room.available and not torch.accelerator.is_available():
        each = f" in each of {times} processes" if times > 1 else ""
        raise RunError(
            f"the weights of {config.path} are {format_bytes(size)}{each}, and {room.limit} has "
            f"{format_bytes(room.available)} free: take a smaller model, or a larger machine."
        )


def reset_peak(device: torch.device) -> None:
    """Start measuring the peak again. On a GPU, what loading the model has left free is given back first."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    memory.reset_peak()


def peak(device: torch.device) -> int:
    """The peak memory since `reset_peak`, in bytes: the GPU's, or that of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return memory.peak()


@contextlib.contextmanager
def explained(trainer: TunedTrainer, stop: StopCallback | None = None) -> Iterator[None]:
    """Turn running out of memory into a `RunError` with the settings to change, and torch's compile
    failures into one sentence. Raises `Interrupted` if the compiler failed, or another rank ended, after a
    signal to stop: it reaches every process of the terminal, including the compiler, and a rank whose
    training has not begun ends at once."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise RunError(out_of_memory(trainer)) from error
        failed = compile_failure(error) if trainer.args.torch_compile else None
        if failed is None and not (is_lost_peer(str(error)) and launcher_is_stopped()):
            raise
        if stop is not None and stop.asked is not None:
            raise Interrupted(stop.asked) from error
        if failed is None:
            raise
        raise RunError(failed) from error


def out_of_memory(trainer: TunedTrainer) -> str:
    """The message for a training that ran out of memory."""
    work, device = workload(trainer), trainer.args.device
    where = "the GPU's memory" if device.type == "cuda" else "memory"
    step = trainer.state.global_step + 1
    if work is None:
        return f"{where} ran out at step {step}: try a smaller training.per_device_train_batch_size."
    held = f" with {format_bytes(peak(device))} in use" if device.type in ("cuda", "cpu") else ""
    found = f"{where} ran out at step {step}{held}"
    return f"{found}. {settings_to_try(work)} --auto-batch finds the largest batch that fits."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or main memory was exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return is_device_out_of_memory(error) or any(text in str(error) for text in _FAILED)
