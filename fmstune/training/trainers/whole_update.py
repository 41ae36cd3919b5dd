"""Preference losses and metrics as means over all rows of an update, or of the steps of a log.

The Trainer averages the means of an update's batches: of five rows in batches of four, the last one would
count as much as the other four together. Here each batch counts by its rows, so that an update learns the
same however its rows are divided into batches. A part of the loss that is a mean over tokens becomes the mean
over the tokens of the whole update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fmstune.training.trainers.each_row_once import SHARES, WEIGHT, Shares
from fmstune.training.trainers.row_batches import row_count
from fmstune.training.trainers.row_means import RowMeans, counts
from fmstune.training.trl_compat.figures import collected_metrics
from fmstune.training.tuned_trainer import as_trainer

_UPDATE = "rows_of_update"


@dataclass(frozen=True, slots=True)
class _Update:
    """The rows of an update of several batches, and the tokens of them that a mean is over, in all
    processes."""

    rows: int
    tokens: int


class WholeUpdates:
    """A mixin for TRL's preference Trainers, before `GuardedTraining` and `EachRowOnce`."""

    counted_mask = "completion_mask"
    """The mask of the tokens that TRL's metrics are about."""
    token_mean: tuple[torch.Tensor, torch.Tensor] | None = None
    """The part of the last batch's loss that is a mean over tokens, and their number."""
    _update: _Update | None = None
    _learnt: RowMeans | None = None
    """The metrics since the last log."""

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The Trainer's, with the weight of each batch."""
        this, trainer = as_trainer(self), as_trainer(super())
        batches, items = trainer.get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) < 2:
            return batches, items
        processes = this.args.world_size
        shares: list[Shares | None] = [batch.get(SHARES) for batch in batches]
        mine = [
            row_count(batch) if share is None else share.mine
            for batch, share in zip(batches, shares, strict=True)
        ]
        rows = sum(
            own * processes if share is None else sum(share.own)
            for own, share in zip(mine, shares, strict=True)
        )
        tokens = self._tokens_of(batches, mine, device)
        update = {} if tokens is None else {_UPDATE: _Update(rows, tokens)}
        weights = [own * processes * len(batches) / rows for own in mine]
        return [
            {**batch, **update, **({} if weight == 1 and share is None else {WEIGHT: weight})}
            for batch, weight, share in zip(batches, weights, shares, strict=True)
        ], items

    def averaged_tokens(self, batch: Any) -> torch.Tensor | None:
        """The number of tokens of a batch that a part of the loss is a mean over; `None` without such a
        part."""
        return None

    def _tokens_of(self, batches: list[Any], mine: list[int], device: Any) -> int | None:
        found = [self.averaged_tokens(batch) for batch in batches]
        own = [each for each, rows in zip(found, mine, strict=True) if each is not None and rows]
        if found[0] is None:
            return None
        total = torch.stack([torch.zeros_like(found[0]), *own]).sum().to(device)
        return int(as_trainer(self).accelerator.gather(total).sum())

    def mean_over_update(self, mean: torch.Tensor, tokens: torch.Tensor, rows: int) -> torch.Tensor | None:
        """The mean over the tokens of this batch, weighted so that the mean over the rows of the update,
        which the loss is, equals that over all its tokens; `None` if this batch is the whole update."""
        if self._update is None:
            return None
        return mean * (int(tokens) * self._update.rows / (rows * self._update.tokens))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss; its metrics are noted with their weights."""
        trainer = as_trainer(super())
        self._update = inputs.pop(_UPDATE, None)
        if not model.training:
            return trainer.compute_loss(model, inputs, return_outputs, num_items_in_batch)
        shares: Shares | None = inputs.get(SHARES)
        own = counts(inputs, self.counted_mask) * (shares is None or shares.mine > 0)
        figures = collected_metrics(self, "train")
        known = {name: len(values) for name, values in figures.items()}
        answer = trainer.compute_loss(model, inputs, return_outputs, num_items_in_batch)
        numbers = as_trainer(self).accelerator.gather(own[None]).sum(0)
        self._learnt = self._learnt or RowMeans()
        self._learnt.add(collected_metrics(self, "train"), known, numbers)
        return answer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's, with means over the rows since the last log."""
        if self._learnt is not None:
            self._learnt.replace(collected_metrics(self, "train"))
        as_trainer(super()).log(logs, start_time)
        if not collected_metrics(self, "train"):  # else this was an evaluation's log
            self._learnt = None

    def forget_batches(self) -> None:
        """The same, after trial batches."""
        as_trainer(super()).forget_batches()
        self._learnt = None
