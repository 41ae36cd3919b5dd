"""Steps outside `Trainer.train`, which has no dry run, and the trainers' private state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import peft.peft_model
import torch
import transformers.modeling_utils
from accelerate.data_loader import DataLoaderDispatcher, SkipBatchSampler
from accelerate.utils.memory import should_reduce_batch_size

from fmstune.training.tuned_trainer import TunedTrainer


def on_device(trainer: TunedTrainer, batch: Any) -> Any:
    """Prepare a batch of the collator for `compute_loss`."""
    this: Any = trainer
    return this._prepare_inputs(batch)


def offloading(trainer: TunedTrainer) -> Any:
    """The context that offloads activations, if the arguments ask for it. TRL enters it in `training_step`,
    whose backward pass needs what only `train` sets up."""
    return getattr(trainer, "maybe_activation_offload_context", contextlib.nullcontext())


def forget_optimizer(trainer: TunedTrainer) -> None:
    """Make `train` create its optimizer and schedule itself: it would keep an existing schedule."""
    this: Any = trainer
    this.optimizer = this.lr_scheduler = None
    this._created_lr_scheduler = False


_SAVERS: tuple[tuple[Any, str], ...] = (
    (transformers.modeling_utils, "safe_save_file"),
    (peft.peft_model, "safe_save_file"),
    (torch, "save"),
)


def set_batch(trainer: TunedTrainer, size: int, accumulation: int) -> None:
    """Change the batch size of a built trainer, which keeps a copy of it for its data loaders."""
    this: Any = trainer
    args = this.args
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, accumulation
    this._train_batch_size = args.train_batch_size
    this.batch_size_changed()


def set_padding_free(trainer: TunedTrainer, avoided: bool) -> None:
    """Turn padding-free training of an sft trainer on or off. As an argument it would be checked before the
    model can be tested."""
    this: Any = trainer
    this.data_collator.padding_free = this.padding_free = avoided


def compares_within_batch(trainer: Any) -> bool:
    """Whether kto compares each row with the others of its batch, which depends on the loss type."""
    return bool(getattr(trainer, "calculate_KL", False))


def gathered(trainer: Any, rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows of all processes, without those that fill up the last batch, as the evaluation gathers
    its losses. The public `accelerator.gather_for_metrics` depends on `eval_use_gather_object`."""
    found: torch.Tensor = trainer.gather_function(rows)
    return found


@contextlib.contextmanager
def evaluation_gathers(trainer: TunedTrainer, gather: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the function that gathers the losses and the inputs of `compute_metrics` in an evaluation."""
    this: Any = trainer
    before, this.gather_function = this.gather_function, gather
    try:
        yield
    finally:
        this.gather_function = before


@dataclass(frozen=True, slots=True)
class LastBatch:
    """The last batch of an epoch: the number of rows left (`rest`), and that of all processes `together`."""

    rest: int
    together: int


def last_batch(trainer: TunedTrainer) -> LastBatch | None:
    """The batch that was just read, if it is the last of its epoch. accelerate fills it up, but says by how
    much only to `gather_for_metrics`, too late for the loss."""
    state = trainer.accelerator.gradient_state
    if not state.end_of_dataloader:
        return None
    loader, processes = state.active_dataloader, trainer.args.world_size
    if isinstance(loader.batch_sampler, SkipBatchSampler):
        return _last_of_rest(loader)
    # -1 if the length is unknown, 0 if the last batch is full.
    if state.remainder <= 0:
        return None
    if isinstance(loader, DataLoaderDispatcher):  # it splits the remaining rows across all processes
        return LastBatch(state.remainder, -(-state.remainder // processes) * processes)
    return LastBatch(state.remainder, loader.total_batch_size)


def _last_of_rest(loader: Any) -> LastBatch | None:
    """The last batch of an epoch that was resumed midway. accelerate's batch-skipping sampler has no size, so
    its loader does not know that the last batch was filled up."""
    sampler = loader.batch_sampler
    while isinstance(sampler, SkipBatchSampler):
        sampler = sampler.batch_sampler
    # As in `DataLoaderShard.total_batch_size`.
    several = 1 if getattr(sampler, "split_batches", False) else getattr(sampler, "num_processes", 1)
    together = sampler.batch_size * several
    rest = len(loader.dataset) % together
    return None if sampler.drop_last or not rest else LastBatch(rest, together)


@contextlib.contextmanager
def gathering(accelerator: Any, gather: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace how TRL gathers its metrics: it calls the accelerator and accepts no function."""
    accelerator.gather = accelerator.gather_for_metrics = gather
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def smooths_labels(trainer: Any) -> bool:
    """Whether the Trainer itself computes the loss, with label smoothing."""
    return trainer.label_smoother is not None


def scales_loss(trainer: Any) -> bool:
    """Whether the loss is scaled, as for fp16. `accelerator.optimizer_step_was_skipped` is set too late."""
    return getattr(trainer.accelerator, "scaler", None) is not None


def is_device_out_of_memory(error: Exception) -> bool:
    """Whether accelerate recognises the error as a device out of memory. The public
    `find_executable_batch_size` would restart the whole training."""
    return bool(should_reduce_batch_size(error))
