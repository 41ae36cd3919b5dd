"""Evaluation of preferences in several processes: the mean of all rows, each counted once.

The Trainer repeats a batch's loss by its sequences, and cuts what it gathers by rows: of the last batch of
two processes it keeps the loss of the first, of pairs also with half its weight.
"""

from __future__ import annotations

from typing import Any

import torch

from fmstune.training.trainers.each_row_once import own_rows, shares_of_last
from fmstune.training.trainers.row_batches import row_count
from fmstune.training.tuned_trainer import as_trainer


class RowWeightedEvaluation:
    """For a class beside a Trainer of TRL's for preferences, before `EachRowOnce`."""

    _summed: torch.Tensor | None = None
    """Of the evaluation under way: the sum of the rows' losses, and their number."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The Trainer's, of rows that are this process's own."""
        trainer = as_trainer(super())
        # What `compute_metrics` is given has to have the same number of rows in all processes.
        if self._summed is None or not prediction_loss_only:
            return trainer.prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        shares, rows = shares_of_last(as_trainer(self)), row_count(inputs)
        if shares is not None:
            inputs, rows = own_rows(inputs, shares), shares.mine
        answer = trainer.prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        loss = answer[0].detach().double()
        mine = torch.stack([loss * rows if rows else torch.zeros_like(loss), torch.full_like(loss, rows)])
        self._summed = self._summed + as_trainer(self).accelerator.gather(mine[None]).sum(0).cpu()
        return answer

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's, with the mean of the rows' losses."""
        trainer = as_trainer(super())
        several = as_trainer(self).args.world_size > 1
        self._summed = torch.zeros(2, dtype=torch.float64) if several else None
        try:
            output = trainer.evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            summed = self._summed
        finally:
            self._summed = None
        name = f"{metric_key_prefix}_loss"
        if summed is not None and summed[1] and name in output.metrics:
            output.metrics[name] = float(summed[0] / summed[1])
        return output
