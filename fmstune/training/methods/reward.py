"""reward with TRL's `RewardTrainer`."""

from __future__ import annotations

from typing import Any

import torch
from trl import RewardConfig, RewardTrainer

from fmstune.training.methods.trained import Trained
from fmstune.training.trainers.preferences import PreferenceTuner
from fmstune.training.tuned_trainer import as_trainer


class RewardTuner(PreferenceTuner, RewardTrainer):
    """TRL's."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """TRL's, with the two rewards of each pair for `compute_metrics`, the first of which should be
        larger: the Trainer does not call it without labels."""
        loss, logits, labels = as_trainer(super()).prediction_step(
            model, inputs, prediction_loss_only, ignore_keys=ignore_keys
        )
        if logits is not None:
            logits = torch.stack(logits.squeeze(-1).chunk(2), dim=-1)
            labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return loss, logits, labels


TRAINED = Trained(RewardConfig, RewardTuner)
