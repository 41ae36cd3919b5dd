"""Losses from the logits of the model's plain forward, which TRL uses for label smoothing and for
`compute_metrics`, while everything else is scored by its fused head."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel

from fmstune.training.trl_compat.head import is_fused


class BalancedSmoother:
    """The Trainer's label smoother, with the loss that balances a mixture's experts, which TRL adds to other
    losses only: with label smoothing it would log the balance without learning it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._smoother = trainer, trainer.label_smoother

    def __call__(
        self, output: Any, labels: torch.Tensor, shift_labels: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The smoothed loss of a batch, whose sum over the batches of an update is the update's."""
        loss: torch.Tensor = self._smoother(
            output, labels, shift_labels=shift_labels, num_items_in_batch=num_items_in_batch
        )
        this = self._trainer
        if not this.aux_loss_enabled or not torch.is_grad_enabled():  # an eval loss is without it
            return loss
        parts = 1
        if num_items_in_batch is not None:
            parts = this.current_gradient_accumulation_steps
            if this.args.average_tokens_across_devices:  # TRL multiplies the sum by the processes
                parts *= this.accelerator.num_processes
        return loss + this.router_aux_loss_coef * output.aux_loss.to(loss.device) / parts


def leave_out_virtual_tokens(model: Any) -> None:
    """Let a model with prompt tuning return logits for the tokens of its rows only. PEFT returns those of the
    virtual tokens before them, too: what compares logits with labels would be off by their number."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        model.register_forward_hook(_of_real_tokens)


def _of_real_tokens(model: Any, args: Any, output: Any) -> None:
    logits = None if is_fused(output) else getattr(output, "logits", None)
    if logits is not None:
        output.logits = logits[:, model.active_peft_config.num_virtual_tokens :]
