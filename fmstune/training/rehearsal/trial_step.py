"""Try the longest batch before the training, and restore everything exactly."""

from __future__ import annotations

import contextlib
import gc
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch

from fmstune.data.tokens.lengths import longest_rows
from fmstune.data.tokens.table import IGNORED
from fmstune.training.memory.placeholder_rows import rows_to_measure
from fmstune.training.trl_compat.figures import metrics_restored
from fmstune.training.trl_compat.steps import forget_optimizer, offloading, on_device
from fmstune.training.tuned_trainer import TunedTrainer

SCRATCH = "rehearsal-{}"
"""The directory of a trial, of each process its own: they neither begin nor end at the same time."""


def remove_leftovers(trainer: TunedTrainer) -> None:
    """Remove what a killed trial has left, on rank zero also that of more processes than there are now."""
    args = trainer.args
    left = [_scratch(trainer)]
    if args.process_index == 0:
        others = {SCRATCH.format(index) for index in range(args.world_size)}
        left += [each for each in Path(args.output_dir).glob(SCRATCH.format("*")) if each.name not in others]
    for each in left:
        shutil.rmtree(each, ignore_errors=True)


def _scratch(trainer: TunedTrainer) -> Path:
    return Path(trainer.args.output_dir, SCRATCH.format(trainer.args.process_index))


@contextlib.contextmanager
def state_restored(trainer: TunedTrainer) -> Iterator[Path]:
    """Restore a trainer's state afterwards: weights, random state, metrics, no optimizer.

    Yields a directory for files, which is removed again. The weights are kept there: a copy in memory would
    change the measured peak.
    """
    model, scratch = trainer.model, _scratch(trainer)
    scratch.mkdir(parents=True, exist_ok=True)
    stored = scratch / "weights.pt"
    torch.save({name: tensor.detach() for name, tensor in _changed_by_training(model)}, stored)
    states = _random_states()
    was_training, guard = model.training, trainer.guard
    try:
        if guard is not None and not guard.stops:
            trainer.guard = None
        with metrics_restored(trainer):
            yield scratch
    finally:
        trainer.guard = guard
        forget_optimizer(trainer)
        model.zero_grad(set_to_none=True)
        kept = torch.load(stored, mmap=True, weights_only=True)
        with torch.no_grad():
            for name, tensor in _changed_by_training(model):
                tensor.copy_(kept[name])
        del kept
        trainer.forget_batches()
        model.train(was_training)
        _restore(states)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        shutil.rmtree(scratch, ignore_errors=True)


def train_one_batch(trainer: TunedTrainer, count: int) -> float:
    """Train on the `count` longest rows, once, optimizer step included. Return the seconds it took."""
    args, model = trainer.args, trainer.model
    began = time.perf_counter()
    if args.activation_checkpointing:
        settings = dict(args.activation_checkpointing_kwargs or {})
        model.activation_checkpointing_enable(
            every_n_layers=settings.pop("every_n_layers", 1),
            offload=settings.pop("offload", False),
            activation_checkpointing_kwargs=settings or None,
        )
    model.train()
    inputs = batch(trainer, rows_to_measure(trainer), count)
    items = (inputs["labels"][..., 1:] != IGNORED).sum() if "labels" in inputs else None
    trainer.current_gradient_accumulation_steps = 1  # as the training sets it for each update
    with offloading(trainer):
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(model, inputs, num_items_in_batch=items)
        loss.backward()
    if trainer.optimizer is None:
        trainer.create_optimizer()
    trainer.optimizer.step()
    model.zero_grad(set_to_none=True)
    if args.device.type == "cuda":
        torch.cuda.synchronize(args.device)
    return time.perf_counter() - began


def batch(trainer: TunedTrainer, rows: Any, count: int) -> Any:
    """The longest rows of a data set as one batch on the device."""
    chosen = rows.select(longest_rows(rows, count, trainer.args.max_length))
    return on_device(trainer, trainer.data_collator([chosen[i] for i in range(len(chosen))]))


def _changed_by_training(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            yield name, weight
    yield from model.named_buffers()


def _random_states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda


def _restore(states: tuple[Any, ...]) -> None:
    python, arrays, torch_state, cuda = states
    random.setstate(python)
    numpy.random.set_state(arrays)
    torch.set_rng_state(torch_state)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
