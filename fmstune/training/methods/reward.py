"""reward with TRL's `RewardTrainer`."""

from __future__ import annotations

from trl import RewardConfig, RewardTrainer

from fmstune.training.methods.trained import Trained
from fmstune.training.trainers.preferences import PreferenceTuner


class RewardTuner(PreferenceTuner, RewardTrainer):
    """TRL's."""


TRAINED = Trained(RewardConfig, RewardTuner)
