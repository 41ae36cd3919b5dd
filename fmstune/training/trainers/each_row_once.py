"""Several processes: the rows that fill up the last batch of an epoch are not trained on twice.

All processes must take part in each step, so accelerate fills up the last batch with rows from the start of
the epoch. This module removes them before the tokens of the step are counted, and weights each process's mean
by its rows, in the loss and the metrics: the step equals that of one process with all their rows. A process
without rows computes one with zero weight, because the others wait for its gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fmstune.training.trainers.row_batches import RowLengths, first_rows, row_lengths
from fmstune.training.trl_compat.steps import gathering, last_batch
from fmstune.training.tuned_trainer import TunedTrainer, as_trainer

SHARES = "shares_of_rows"
"""The key of a batch's `Shares`."""
WEIGHT = "weight_of_process"
"""The key of the factor for a batch's loss."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How many rows of the last batch are each process's own; its other rows are fill-up rows."""

    own: tuple[int, ...]
    process: int
    size: int
    """The rows of each process in a full batch."""

    @property
    def mine(self) -> int:
        """The rows of this process."""
        return self.own[self.process]

    @property
    def weight(self) -> float:
        """The factor for this process's mean that turns the mean over processes into the mean over rows."""
        return self.mine * len(self.own) / sum(self.own)

    def with_full(self, batches: int) -> Shares:
        """The rows of this batch and of `batches` full ones before it."""
        return replace(self, own=tuple(rows + batches * self.size for rows in self.own))


def rows_of_processes(rest: int, processes: int, size: int) -> tuple[int, ...]:
    """How many rows of the last batch are each process's own, given `rest` remaining rows for all.

    accelerate assigns `size` rows to each process in turn (`BatchSamplerShard`), so the fill-up rows come
    last.
    """
    return tuple(min(max(rest - process * size, 0), size) for process in range(processes))


class EachRowOnce:
    """A mixin for a TRL Trainer, right before it."""

    def get_train_dataloader(self) -> Any:
        """The Trainer's, which records row lengths if packed: they mark where each row of a batch starts."""
        this, trainer = as_trainer(self), as_trainer(super())
        if this.args.world_size == 1 or not getattr(this.args, "packing", False):
            return trainer.get_train_dataloader()
        collator = this.data_collator
        this.data_collator = RowLengths(collator)
        try:
            return trainer.get_train_dataloader()
        finally:
            this.data_collator = collator

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The Trainer's, with each row counted once."""
        this, trainer = as_trainer(self), as_trainer(super())
        batches, items = trainer.get_batch_samples(self._once(epoch_iterator), num_batches, device)
        shares: Shares | None = batches[-1].get(SHARES) if batches and this.args.world_size > 1 else None
        if shares is not None and items is not None and not this.args.average_tokens_across_devices:
            # Each process divides by its own tokens of the whole update, so its mean covers the update.
            weight = shares.with_full(len(batches) - 1).weight
            batches = [{**batch, WEIGHT: weight} for batch in batches]
        return batches, items

    def _once(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            shares = shares_of_last(as_trainer(self))
            if shares is not None:  # without the fill-up rows, for `compute_loss`
                batch = {**first_rows(batch, shares.mine, row_lengths(batch)), SHARES: shares}
            yield batch

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss and metrics for this process's own rows."""
        this, trainer = as_trainer(self), as_trainer(super())
        shares: Shares | None = inputs.pop(SHARES, None)
        weight: float | None = inputs.pop(WEIGHT, None)
        inputs.pop(RowLengths.NAME, None)
        # Once the last batch has been read, `gather_for_metrics` truncates gathered values as if they were
        # rows, including those of earlier batches of the same update, and even with one process.
        with gathered_once(this.accelerator, shares) if model.training else contextlib.nullcontext():
            answer = trainer.compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if weight is None and shares is not None and num_items_in_batch is None:
            weight = shares.weight
        return answer if weight is None else answer * weight


def shares_of_last(trainer: TunedTrainer) -> Shares | None:
    """The rows of each process in the batch that was just read, if it was filled up with repeated rows."""
    args = trainer.args
    last = last_batch(trainer) if args.world_size > 1 else None
    if last is None or last.rest >= last.together:
        return None
    size = last.together // args.world_size
    return Shares(rows_of_processes(last.rest, args.world_size, size), args.process_index, size)


@contextlib.contextmanager
def gathered_once(accelerator: Any, shares: Shares | None) -> Iterator[None]:
    """Restrict what TRL gathers for its metrics to each process's own rows."""
    everything = accelerator.gather

    def of_own_rows(values: torch.Tensor) -> torch.Tensor:
        return everything(values) if shares is None else gather_own(values, shares, everything)

    with gathering(accelerator, of_own_rows):
        yield


def gather_own(
    values: torch.Tensor, shares: Shares, gather: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Gather `values` of the own rows of all processes: (rows, …) in process order, or one scalar per process
    (processes), whose sum excludes processes without rows and whose mean is over rows."""
    rows = torch.tensor(shares.own, device=values.device)
    if values.dim() == 0:
        figures = gather(values)
        found = torch.where(rows > 0, figures, torch.zeros_like(figures)).as_subclass(MetricPerProcess)
        found.rows = rows
        return found
    kept = [max(own, 1) for own in shares.own]  # see `first_rows`
    each = values.shape[0] // kept[shares.process]  # a reward model has two values per pair
    wide = values.new_zeros(each * max(kept), *values.shape[1:])
    wide[: values.shape[0]] = values
    parts = gather(wide).chunk(len(kept))
    return torch.cat([part[: each * own] for part, own in zip(parts, shares.own, strict=True)])


class MetricPerProcess(torch.Tensor):
    """One metric value per process. TRL adds up sums, and averages means."""

    rows: torch.Tensor

    def detach(self) -> MetricPerProcess:
        """The same values."""
        found: MetricPerProcess = super().detach().as_subclass(MetricPerProcess)
        found.rows = self.rows
        return found

    def mean(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The mean over all rows, computed from the mean of each process."""
        figures = self.as_subclass(torch.Tensor)
        return (figures * self.rows).sum() / self.rows.sum()


def mean_over_all_tokens(
    accelerator: Any, mean: torch.Tensor, tokens: torch.Tensor, rows: int
) -> torch.Tensor:
    """A mean over the tokens of this process's rows, weighted so that the mean over the rows of all
    processes, which the loss is, equals that over all tokens."""
    if accelerator.num_processes == 1:
        return mean
    all_tokens = int(accelerator.gather(tokens).sum())
    all_rows = int(accelerator.gather(torch.full_like(tokens, rows)).sum())
    return mean * (int(tokens) * all_rows / (rows * all_tokens))
