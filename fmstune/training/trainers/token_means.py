"""Accuracy and entropy of the training as means over its trained tokens, as in an evaluation.

TRL logs the mean of batch means: a batch of short answers would count as much as one of long answers, and one
without a trained token as an accuracy of zero.
"""

from __future__ import annotations

from typing import Any

from fmstune.data.tokens.table import IGNORED
from fmstune.training.trl_compat.figures import collected_metrics
from fmstune.training.tuned_trainer import as_trainer

_TOKENS = "trained_tokens_of_batches"
"""Collected next to the metrics that it weights, so that a batch is left out of all of them or of none."""
_MEANS = ("entropy", "mean_token_accuracy")


class TokenMeans:
    """A mixin for TRL's SFTTrainer, right before it."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, noting the number of trained tokens in all processes."""
        this, trainer = as_trainer(self), as_trainer(super())
        tokens = (inputs["labels"][..., 1:] != IGNORED).sum() if model.training else None
        answer = trainer.compute_loss(model, inputs, *args, **kwargs)
        if tokens is not None:
            tokens = this.accelerator.gather_for_metrics(tokens).sum()
            collected_metrics(self, "train").setdefault(_TOKENS, []).append(tokens)
        return answer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's, with means over the tokens since the last log."""
        this, trainer = as_trainer(self), as_trainer(super())
        if this.model.training:  # else this is an evaluation's log
            figures = collected_metrics(self, "train")
            weights = [float(each) for each in figures.pop(_TOKENS, ())]
            if total := sum(weights):
                for name in _MEANS:
                    pairs = zip(figures[name], weights, strict=True)
                    figures[name] = [sum(value * weight for value, weight in pairs) / total]
        trainer.log(logs, start_time)
