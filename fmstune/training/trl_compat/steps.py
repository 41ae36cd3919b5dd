"""Steps outside of `Trainer.train`, which has no dry run, and what the trainers keep to themselves."""

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
    """A batch of the collator as `compute_loss` takes it."""
    this: Any = trainer
    return this._prepare_inputs(batch)


def offloading(trainer: TunedTrainer) -> Any:
    """The context in which activations are offloaded, if the arguments want that: TRL enters it within
    `training_step`, which makes a backward pass with what only `train` has set up."""
    return getattr(trainer, "maybe_activation_offload_context", contextlib.nullcontext())


def forget_optimizer(trainer: TunedTrainer) -> None:
    """Let `train` make its optimizer and schedule itself: it keeps a schedule that it takes for its own."""
    this: Any = trainer
    this.optimizer = this.lr_scheduler = None
    this._created_lr_scheduler = False


_SAVERS: tuple[tuple[Any, str], ...] = (
    (transformers.modeling_utils, "safe_save_file"),
    (peft.peft_model, "safe_save_file"),
    (torch, "save"),
)


def set_batch(trainer: TunedTrainer, size: int, accumulation: int) -> None:
    """Give a built trainer another size of a batch: it has taken a copy of the arguments' for its loaders."""
    this: Any = trainer
    args = this.args
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, accumulation
    this._train_batch_size = args.train_batch_size
    this.batch_size_changed()


def set_padding_free(trainer: TunedTrainer, avoided: bool) -> None:
    """Let an sft trainer do with or without padding. As an argument it is checked before there is a model to
    be asked."""
    this: Any = trainer
    this.data_collator.padding_free = this.padding_free = avoided


def compares_within_batch(trainer: Any) -> bool:
    """Whether kto compares each row with the others of its batch; a list of losses decides it."""
    return bool(getattr(trainer, "calculate_KL", False))


def gathered(trainer: Any, rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, without those that fill up the last batch: as the evaluation gathers its
    losses. `accelerator.gather_for_metrics` is the public way, which `eval_use_gather_object` changes."""
    found: torch.Tensor = trainer.gather_function(rows)
    return found


@contextlib.contextmanager
def evaluation_gathers(trainer: TunedTrainer, gather: Callable[[Any], Any]) -> Iterator[None]:
    """Let an evaluation gather what it hands to `compute_metrics`, and the losses, in another way."""
    this: Any = trainer
    before, this.gather_function = this.gather_function, gather
    try:
        yield
    finally:
        this.gather_function = before


@dataclass(frozen=True, slots=True)
class LastBatch:
    """The last batch of an epoch: the rows that were left for it, and those of all processes `together`."""

    rest: int
    together: int


def last_batch(trainer: TunedTrainer) -> LastBatch | None:
    """The batch that was just read, where it is the last one. accelerate fills it up, and knows by how much
    for `gather_for_metrics` alone, which is too late for the loss."""
    state = trainer.accelerator.gradient_state
    if not state.end_of_dataloader:
        return None
    loader, processes = state.active_dataloader, trainer.args.world_size
    if isinstance(loader.batch_sampler, SkipBatchSampler):
        return _last_of_rest(loader)
    # -1 where the length is not known, 0 where the last batch is full.
    if state.remainder <= 0:
        return None
    if isinstance(loader, DataLoaderDispatcher):  # it divides what is left among all
        return LastBatch(state.remainder, -(-state.remainder // processes) * processes)
    return LastBatch(state.remainder, loader.total_batch_size)


def _last_of_rest(loader: Any) -> LastBatch | None:
    """The last batch of an epoch resumed in the middle. accelerate's sampler that skips batches has no
    size, and its loader does not know then that the last one was filled up."""
    sampler = loader.batch_sampler
    while isinstance(sampler, SkipBatchSampler):
        sampler = sampler.batch_sampler
    # As `DataLoaderShard.total_batch_size` has it.
    several = 1 if getattr(sampler, "split_batches", False) else getattr(sampler, "num_processes", 1)
    together = sampler.batch_size * several
    rest = len(loader.dataset) % together
    return None if sampler.drop_last or not rest else LastBatch(rest, together)


@contextlib.contextmanager
def gathering(accelerator: Any, gather: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let TRL gather its figures in another way: it asks the accelerator, and takes no function for it."""
    accelerator.gather = accelerator.gather_for_metrics = gather
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def smooths_labels(trainer: Any) -> bool:
    """Whether the Trainer computes the loss itself, with smoothed labels."""
    return trainer.label_smoother is not None


def scales_loss(trainer: Any) -> bool:
    """Whether the loss is scaled, as for fp16. `accelerator.optimizer_step_was_skipped` comes after it."""
    return getattr(trainer.accelerator, "scaler", None) is not None


def is_device_out_of_memory(error: Exception) -> bool:
    """accelerate's list of what devices say when their memory is not enough; `find_executable_batch_size`
    is what it is meant for, and starts the whole training again."""
    return bool(should_reduce_batch_size(error))
