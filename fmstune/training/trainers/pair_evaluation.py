"""Evaluation of preferences: the mean over all rows, and for `compute_metrics` each row once, in order.

The Trainer repeats a batch's loss by the batch size, and truncates gathered values to the number of rows in
the last batch. This assumes one entry per row. Of pairs, it drops the second half, the rejected answers, even
with one process; with several processes, it keeps only the loss of the first. TRL's own metrics are means of
batch means (see `row_means`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import recursively_apply

from fmstune.data.tokens.table import IGNORED
from fmstune.training.trainers.each_row_once import Shares, gather_own, gathered_once, shares_of_last
from fmstune.training.trainers.eval_sets import Measured
from fmstune.training.trainers.row_batches import first_rows, row_count, row_lengths
from fmstune.training.trainers.row_means import RowMeans, counts
from fmstune.training.trl_compat.figures import Figures, collected_metrics
from fmstune.training.trl_compat.steps import evaluation_gathers
from fmstune.training.tuned_trainer import as_trainer


@dataclass
class _Measured:
    """The metrics of the batches of an evaluation, and what a part of its loss is a mean over."""

    means: RowMeans
    tokens: list[tuple[float, float, int]]
    batch_mean: float = 0.0
    """The Trainer's own loss."""

    def added(self, other: _Measured) -> _Measured:
        """The batches of both."""
        return _Measured(self.means.added(other.means), self.tokens + other.tokens)

    def write(self, metrics: dict[str, float], figures: Figures, prefix: str) -> None:
        """Put the means over rows and tokens in place of the Trainer's and of TRL's."""
        self.means.replace(figures)
        name = f"{prefix}_loss"
        if name not in metrics:
            return
        self.batch_mean = metrics[name]
        if self.tokens:
            metrics[name] += _beyond_batches(self.tokens)


class RowWeightedEvaluation:
    """A mixin for TRL's preference Trainers, before `EachRowOnce`."""

    counted_mask: str
    measured: Measured | None
    _evaluates = False
    _means = RowMeans()
    _token_means: list[tuple[float, float, int]]
    """For each batch of all processes, the sum of what a part of its loss is a mean over, the number of these
    tokens, and that of rows."""
    token_mean: tuple[torch.Tensor, torch.Tensor] | None
    _shares: Shares | None = None
    """The shares of the current batch, if it was filled up."""
    _rows = 0
    """The rows of this process in the current batch, at least one: see `first_rows`."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The Trainer's, for this process's own rows."""
        this, trainer = as_trainer(self), as_trainer(super())
        if not self._evaluates:
            return trainer.prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        shares = self._shares = shares_of_last(this)
        if shares is not None:
            # In place: the Trainer gathers the batch's inputs too, if `include_for_metrics` asks for them.
            inputs.update(first_rows(inputs, shares.mine, row_lengths(inputs)))
        self._rows = row_count(inputs)
        once = contextlib.nullcontext() if shares is None else gathered_once(this.accelerator, shares)
        figures = collected_metrics(this, "eval")
        known = {name: len(values) for name, values in figures.items()}
        with once:
            loss, logits, labels = trainer.prediction_step(
                model, inputs, prediction_loss_only, ignore_keys=ignore_keys
            )
        has_rows = shares is None or shares.mine > 0
        own = counts(inputs, self.counted_mask) * has_rows
        numbers = this.accelerator.gather(own[None]).sum(0)
        self._means.add(figures, known, numbers)
        if self.token_mean is not None:
            mean, tokens = self.token_mean
            sums = torch.stack([mean.double() * tokens, tokens.double()]) * has_rows
            total, count = this.accelerator.gather(sums[None]).sum(0).tolist()
            self._token_means.append((total, count, int(numbers[0])))
        if isinstance(labels, torch.Tensor) and labels.shape == inputs["input_ids"].shape:
            # TRL returns the tokens with padding, which depends on the longest row of the batch.
            padding = inputs["attention_mask"].to(labels.device) == 0
            labels = labels.masked_fill(padding, IGNORED)
        return loss, logits, labels

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's, gathering each row once, with means over all rows."""
        trainer = as_trainer(super())
        self._evaluates, self._means, self._token_means = True, RowMeans(), []
        try:
            with evaluation_gathers(as_trainer(self), self._gathered), _without_balance(self):
                output = trainer.evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
        finally:
            self._evaluates = False
        measured = _Measured(self._means, self._token_means)
        measured.write(output.metrics, collected_metrics(self, "eval"), metric_key_prefix)
        self.measured = measured
        return output

    def _gathered(self, values: Any) -> Any:
        """Gather the tensors in `values` from all processes, with the two entries of each pair adjacent."""
        return recursively_apply(self._of_rows, values)

    def _of_rows(self, values: torch.Tensor) -> torch.Tensor:
        rows = self._rows
        if values.dim() == 1 and len(values) != rows:
            values = values[:1].expand(rows)  # a loss, repeated to the size of a full batch
        elif len(values) == 2 * rows:  # all chosen answers, then all rejected
            values = torch.stack(values.chunk(2), dim=1).flatten(0, 1)
        gather = as_trainer(self).accelerator.gather
        if self._shares is None:
            found: torch.Tensor = gather(values)
            return found
        return gather_own(values, self._shares, gather)


@contextlib.contextmanager
def _without_balance(trainer: Any) -> Iterator[None]:
    """Leave out the loss that balances a mixture's experts, as the eval loss of sft does: it depends on which
    rows form a batch."""
    name = next((each for each in ("router_aux_loss_coef", "aux_loss_coef") if hasattr(trainer, each)), None)
    if name is None:
        yield
        return
    weight = getattr(trainer, name)
    setattr(trainer, name, 0.0)
    try:
        yield
    finally:
        setattr(trainer, name, weight)


def _beyond_batches(means: Sequence[tuple[float, float, int]]) -> float:
    """What a mean over all tokens is above the mean over rows of the means of their batches."""
    totals, tokens, rows = (sum(column) for column in zip(*means, strict=True))
    return float(totals / tokens - sum(total / count * own for total, count, own in means) / rows)
