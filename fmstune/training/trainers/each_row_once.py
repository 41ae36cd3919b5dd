"""Several processes: the rows that fill up the last batch of an epoch are not learnt a second time.

All processes have to come to each step, so accelerate fills up the last batch with rows of the epoch's
beginning. They are taken out of it here, before the tokens of the step are counted, and each process's mean
is weighed by its rows, in the loss and in the figures: the step is that of one process with a batch of all
their rows. A process that has no row left computes one for nothing, since the others wait for its gradients.
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

_SHARES = "shares_of_rows"
_WEIGHT = "weight_of_process"


@dataclass(frozen=True, slots=True)
class Shares:
    """How many rows of the last batch are each process's own; what it has beside them fills up."""

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
        """The rows of this batch and of as many full ones before it."""
        return replace(self, own=tuple(rows + batches * self.size for rows in self.own))


def dealt(rest: int, processes: int, size: int) -> tuple[int, ...]:
    """How many rows of the last batch are each process's own, of `rest` rows that are left for all.

    accelerate deals out `size` rows to each process in turn (`BatchSamplerShard`), so those that fill up are
    the last ones.
    """
    return tuple(min(max(rest - process * size, 0), size) for process in range(processes))


class EachRowOnce:
    """A mixin for a TRL Trainer, right before it."""

    def get_train_dataloader(self) -> Any:
        """The Trainer's; packed rows follow each other in a batch; their lengths say where each begins."""
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
        """The Trainer's, for batches in which each row counts once."""
        this, trainer = as_trainer(self), as_trainer(super())
        batches, items = trainer.get_batch_samples(self._once(epoch_iterator), num_batches, device)
        shares: Shares | None = batches[-1].get(_SHARES) if batches and this.args.world_size > 1 else None
        if shares is not None and items is not None and not this.args.average_tokens_across_devices:
            # Each process divides by its own tokens of the whole update, so its mean is that of the update.
            weight = shares.with_full(len(batches) - 1).weight
            batches = [{**batch, _WEIGHT: weight} for batch in batches]
        return batches, items

    def _once(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            shares = shares_of_last(as_trainer(self))
            if shares is not None:  # without the padding rows, for `compute_loss`
                batch = {**first_rows(batch, shares.mine, row_lengths(batch)), _SHARES: shares}
            yield batch

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss and metrics for this process's own rows."""
        this, trainer = as_trainer(self), as_trainer(super())
        shares: Shares | None = inputs.pop(_SHARES, None)
        weight: float | None = inputs.pop(_WEIGHT, None)
        inputs.pop(RowLengths.NAME, None)
        # As soon as the last batch has been read, `gather_for_metrics` cuts what is gathered, as if it were
        # rows, of the batches before it too that are of the same update; in one process as well.
        with gathered_once(this.accelerator, shares) if model.training else contextlib.nullcontext():
            answer = trainer.compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if weight is None and shares is not None and num_items_in_batch is None:
            weight = shares.weight
        return answer if weight is None else answer * weight


def shares_of_last(trainer: TunedTrainer) -> Shares | None:
    """The rows of each process in the batch that was just read, if it was padded with repeated rows."""
    args = trainer.args
    last = last_batch(trainer) if args.world_size > 1 else None
    if last is None or last.rest >= last.together:
        return None
    size = last.together // args.world_size
    return Shares(dealt(last.rest, args.world_size, size), args.process_index, size)


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
    """`values` of the own rows of all processes: (rows, …), in the order of the processes, or of one figure
    of each process (processes), whose sum leaves out those without a row and whose mean is that of rows."""
    rows = torch.tensor(shares.own, device=values.device)
    if values.dim() == 0:
        figures = gather(values)
        found = torch.where(rows > 0, figures, torch.zeros_like(figures)).as_subclass(FigureOfProcesses)
        found.rows = rows
        return found
    kept = [max(own, 1) for own in shares.own]  # see `first_rows`
    each = values.shape[0] // kept[shares.process]  # a reward model has two values of each pair
    wide = values.new_zeros(each * max(kept), *values.shape[1:])
    wide[: values.shape[0]] = values
    parts = gather(wide).chunk(len(kept))
    return torch.cat([part[: each * own] for part, own in zip(parts, shares.own, strict=True)])


class FigureOfProcesses(torch.Tensor):
    """One metric value per process. TRL sums those that are sums, and averages means."""

    rows: torch.Tensor

    def detach(self) -> FigureOfProcesses:
        """The same values."""
        found: FigureOfProcesses = super().detach().as_subclass(FigureOfProcesses)
        found.rows = self.rows
        return found

    def mean(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The mean of all rows, of the means of each process's rows."""
        figures = self.as_subclass(torch.Tensor)
        return (figures * self.rows).sum() / self.rows.sum()
