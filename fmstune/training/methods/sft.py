"""sft with TRL's `SFTTrainer`."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from fmstune.models.saving import SavesInOriginalDtype
from fmstune.training.methods.trained import Trained
from fmstune.training.speed.flat_batches import REAL_TOKENS
from fmstune.training.speed.lm_head import balances_experts, fit_lm_head
from fmstune.training.trainers.all_rows import EvaluatesAllRows
from fmstune.training.trainers.checkpoints import AtomicCheckpoints
from fmstune.training.trainers.disk import GuardedSaving
from fmstune.training.trainers.each_row_once import EachRowOnce
from fmstune.training.trainers.eval_sets import EvaluatesSets
from fmstune.training.trainers.evaluation import TokenWeightedEvaluation
from fmstune.training.trainers.guarded import GuardedTraining
from fmstune.training.trainers.loaded_weights import LoadsAllWeights
from fmstune.training.trainers.loss_weights import WeightedCollator, WeightedLoss
from fmstune.training.trainers.neftune import RowNoise
from fmstune.training.trainers.output_precision import KeepsOutputPrecision, return_float32
from fmstune.training.trainers.plain_logits import BalancedSmoother, leave_out_virtual_tokens
from fmstune.training.trainers.rates import MultipliedRates
from fmstune.training.trainers.timed import TimedTraining
from fmstune.training.trainers.token_means import TokenMeans
from fmstune.training.trainers.workers import EndsWorkers
from fmstune.training.trl_compat.figures import count_tokens
from fmstune.training.trl_compat.loop import CachedLookups
from fmstune.training.trl_compat.steps import smooths_labels


class FineTuner(
    TimedTraining,
    AtomicCheckpoints,
    LoadsAllWeights,
    SavesInOriginalDtype,
    GuardedSaving,
    EvaluatesSets,
    TokenWeightedEvaluation,
    GuardedTraining,
    EachRowOnce,
    WeightedLoss,
    EndsWorkers,
    MultipliedRates,
    EvaluatesAllRows,
    CachedLookups,
    KeepsOutputPrecision,
    TokenMeans,
    SFTTrainer,
):
    """TRL's trainer, without its work for other cases than ours."""

    data_collator: Any
    neftune_noise_alpha: float | None
    aux_loss_enabled: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        return_float32(self)
        leave_out_virtual_tokens(self.model)
        self.data_collator = WeightedCollator.of(self.data_collator)
        bare = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.lm_head = fit_lm_head(bare, direct=self.args.device.type == "cpu", experts=self.aux_loss_enabled)
        self.unbalanced = self.lm_head == "own" and self.aux_loss_enabled and not balances_experts(bare)
        if self.unbalanced:
            if self.args.router_aux_loss_coef:
                raise ValueError(
                    f"training.router_aux_loss_coef: {bare.config.model_type} gives no loss that balances "
                    "its experts; leave it out."
                )
            self.aux_loss_enabled = bare.config.get_text_config().output_router_logits = False
        if smooths_labels(self):
            self.label_smoother = BalancedSmoother(self)
        # Not the Trainer's own noise, which depends on the width of the batch.
        alpha, self.neftune_noise_alpha = self.neftune_noise_alpha, None
        self._noise = None if alpha is None else RowNoise(alpha)
        if self.args.packing and self.args.world_size > 1:
            # A batch of packed rows is one row to `gather_for_metrics`, which would not find those that fill
            # up the last batch of several processes, and they would be counted twice.
            self.args.per_device_eval_batch_size = 1

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with noise on the embeddings if configured."""
        with contextlib.nullcontext() if self._noise is None else self._noise.on(self.model):
            return super().train(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loss."""
        real = inputs.pop(REAL_TOKENS, None)
        if self._noise is not None:
            self._noise.next_batch(inputs)
        answer = super().compute_loss(model, inputs, *args, **kwargs)
        if real is not None and model.training:
            filled = max(0, inputs["input_ids"].numel() - real)  # none are left where rows were removed
            everywhere = self.accelerator.gather(torch.tensor(filled, device=self.args.device))
            count_tokens(self, -int(everywhere.sum()))
        return answer

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Evaluation is padded also where the training is not: the Trainer averages over rows, and would
        count a batch without padding as one."""
        collator = self.data_collator
        if getattr(collator, "padding_free", False) and not self.args.packing:
            self.data_collator = dataclasses.replace(collator, padding_free=False)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card to each checkpoint: TRL's calls a local model `None`. The run writes its own,
        once."""


TRAINED = Trained(SFTConfig, FineTuner)
