"""Find the largest batch that fits; gradient accumulation keeps the effective batch size."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from fmstune.errors import RunError
from fmstune.training.memory.outlook import Outlook, is_out_of_memory, out_of_memory, outlook
from fmstune.training.rehearsal.trial_step import state_restored, train_one_batch
from fmstune.training.trl_compat.steps import compares_within_batch, set_batch
from fmstune.training.tuned_trainer import TunedTrainer


def find_batch(trainer: TunedTrainer) -> tuple[int, int]:
    """Set the trainer to the largest batch that fits, and return it with its accumulation steps.

    Of the divisors of the batch times its accumulation, those that are estimated to fit are tried on the
    longest rows (for a stream, on worst-case rows), the largest first. Several processes trust the estimate:
    one that ran out of memory would leave the others waiting. Raises `RunError` when not even single rows
    fit.
    """
    args = trainer.args
    effective = args.per_device_train_batch_size * args.gradient_accumulation_steps
    sizes = [
        size for size in range(effective, 0, -1) if effective % size == 0 and size >= _smallest_batch(trainer)
    ]
    estimated = [size for size in sizes if _should_fit(trainer, size, effective)] or sizes[-1:]
    if args.world_size > 1:
        size = torch.tensor(estimated[0], device=args.device)
        torch.distributed.all_reduce(size, op=torch.distributed.ReduceOp.MIN)
        return _set(trainer, int(size), effective)
    with state_restored(trainer):
        for size in estimated:
            if _fits(trainer, size):
                return _set(trainer, size, effective)
    _set(trainer, sizes[-1], effective)
    few = "single rows" if sizes[-1] == 1 else f"{sizes[-1]} rows at once"
    raise RunError(f"not even {few} fit: {out_of_memory(trainer)}")


def _smallest_batch(trainer: TunedTrainer) -> int:
    """The smallest batch that the method can be trained on: kto compares each row with others."""
    return 2 if compares_within_batch(trainer) else 1


def _fits(trainer: TunedTrainer, size: int) -> bool:
    try:
        train_one_batch(trainer, size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # it holds the tensors of every frame
        return False
    finally:
        trainer.optimizer = None
        trainer.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def _should_fit(trainer: TunedTrainer, size: int, effective: int) -> bool:
    _set(trainer, size, effective)
    found = outlook(trainer)
    if found is None:
        return True
    # A full GPU raises an error; a full machine ends the process. So only a GPU is tried.
    spare = 1.5 if found.work.on_gpu else 1.0
    return replace_room(found, spare).fits


def replace_room(found: Outlook, factor: float) -> Outlook:
    """The same outlook with more or less room."""
    return replace(found, room=replace(found.room, available=int(found.room.available * factor)))


def _set(trainer: TunedTrainer, size: int, effective: int) -> tuple[int, int]:
    set_batch(trainer, size, effective // size)
    return size, effective // size
