"""dpo with TRL's `DPOTrainer`."""

from __future__ import annotations

from trl import DPOConfig, DPOTrainer

from fmstune.training.methods.trained import Trained
from fmstune.training.trainers.preferences import PreferenceTuner


class DpoTuner(PreferenceTuner, DPOTrainer):
    """TRL's."""


TRAINED = Trained(DPOConfig, DpoTuner)
