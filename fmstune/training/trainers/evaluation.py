"""Evaluation metrics as means over tokens, independent of batch size, packing and number of processes.

The Trainer's loss is a mean of batch means, and so are TRL's accuracy and entropy: a batch of short answers
counts as much as one of long answers, so the metric changes with the batch size. The perplexity that people
compare uses the mean over all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fmstune.data.tokens.table import LOSS_WEIGHTS
from fmstune.training.trainers.eval_sets import Measured
from fmstune.training.trainers.loss_weights import of_targets
from fmstune.training.trl_compat.figures import Figures, collected_metrics
from fmstune.training.trl_compat.head import is_fused
from fmstune.training.trl_compat.steps import gathered, smooths_labels
from fmstune.training.tuned_trainer import as_trainer

BATCH_MEAN = "loss_batch_mean"
"""The metric with the Trainer's own value, for comparison with other tools."""


@dataclass
class _Sums:
    """Sums over the rows evaluated so far: trained tokens, their weight in the loss, and their weighted loss,
    entropy and correct predictions."""

    tokens: float = 0.0
    weight: float = 0.0
    loss: float = 0.0
    entropy: float = 0.0
    right: float = 0.0
    batch_mean: float = 0.0
    """The Trainer's own loss."""

    def add(self, rows: torch.Tensor) -> None:
        """Add `rows`, (rows, 5), in the order of the fields."""
        self._increase(rows.double().sum(0).tolist())

    def added(self, other: _Sums) -> _Sums:
        """The sums over the rows of both."""
        both = replace(self)
        both._increase([other.tokens, other.weight, other.loss, other.entropy, other.right])
        return both

    def write(self, metrics: dict[str, float], figures: Figures, prefix: str) -> None:
        """Put the means over tokens in place of the Trainer's and of TRL's, which are over batches."""
        name = f"{prefix}_loss"
        if not self.tokens or name not in metrics:
            return
        self.batch_mean = metrics[f"{prefix}_{BATCH_MEAN}"] = metrics[name]
        metrics[name] = self.loss / self.weight
        figures["entropy"] = [self.entropy / self.tokens]  # TRL logs their mean
        figures["mean_token_accuracy"] = [self.right / self.tokens]

    def _increase(self, values: Sequence[float]) -> None:
        tokens, weight, loss, entropy, right = values
        self.tokens += tokens
        self.weight += weight
        self.loss += loss
        self.entropy += entropy
        self.right += right


@dataclass
class _Seen:
    """The model's output in one evaluation step."""

    outputs: list[Any] = field(default_factory=list)

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        """A forward hook."""
        if is_fused(output):
            self.outputs.append(output)


class TokenWeightedEvaluation:
    """A mixin for TRL's SFTTrainer, before it."""

    measured: Measured | None
    _sums: _Sums | None = None

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The Trainer's, adding its rows to the sums."""
        trainer = as_trainer(super())
        if self._sums is None:
            return trainer.prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        seen = _Seen()
        hook = model.register_forward_hook(seen)
        try:
            answer = trainer.prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        finally:
            hook.remove()
        rows = _of_rows(seen.outputs[-1], answer[0], self._per_token_loss(), inputs.get(LOSS_WEIGHTS))
        # Drops the rows that fill up the last batch of several processes, as for the Trainer's loss.
        self._sums.add(gathered(self, rows))
        return answer

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's, with means over tokens instead of means over batches."""
        trainer = as_trainer(super())
        sums = self._sums = _Sums()
        try:
            output = trainer.evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._sums = None
        sums.write(output.metrics, collected_metrics(self, "eval"), metric_key_prefix)
        self.measured = sums
        return output

    def _per_token_loss(self) -> str | None:
        """The loss type that TRL sums over tokens; `None` for a loss that is only known per batch."""
        this: Any = self
        if this.compute_loss_func is not None:
            return None
        kind = str(this.args.loss_type)
        return None if kind == "nll" and smooths_labels(this) else kind


def _of_rows(
    output: Any, batch_loss: torch.Tensor, kind: str | None, weights: torch.Tensor | None
) -> torch.Tensor:
    """For each row: trained tokens, their weight, loss, entropy, correct predictions. A loss known only per
    batch is distributed by tokens; only `nll` supports weights."""
    tokens = weight = output.label_mask.sum(-1)
    if weights is not None:
        weights = of_targets(weights, output.log_probs)
        weight = (weights * output.label_mask).sum(-1)
        loss = -(output.log_probs * weights).sum(-1)
    elif kind == "nll":
        loss = -output.log_probs.sum(-1)
    elif kind == "dft":  # https://huggingface.co/papers/2508.05629
        loss = -(output.log_probs * output.log_probs.exp()).sum(-1)
    else:
        loss = batch_loss * tokens
    return torch.stack([tokens, weight, loss, output.entropy.sum(-1), output.is_top1.sum(-1)], dim=-1).float()
