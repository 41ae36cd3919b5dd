"""The loss of TRL's trainer without its recomputation, where that costs more than it saves.

TRL 1.16 computes log-probabilities in chunks that the backward pass computes again, so that the logits
of a large vocabulary are never held at once; without Triton it does so for every position, prompts and
padding included. On a CPU memory is not what runs out: computing the logits of the trained positions
alone, once, gives the same numbers in a fraction of the time (tests/benchmarks/train_speed.py).
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

# Settings of architectures that scale or cap their logits; theirs is left to TRL, which knows them.
_SCALED = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def use_direct_lm_head(model: PreTrainedModel) -> bool:
    """Replace TRL's chunked LM head on `model`, already added to it, by a direct one.

    Returns False, with nothing changed, for a model whose logits are scaled or that has experts.
    """
    settings = model.config.get_text_config()
    scaled = any(getattr(settings, name, None) not in (None, 1, 1.0) for name in _SCALED)
    head = model.get_output_embeddings()
    if scaled or hasattr(settings, "output_router_logits") or not isinstance(head, torch.nn.Linear):
        return False
    through_trl = model.forward

    @functools.wraps(through_trl)  # its signature is asked which arguments the model takes, by `generate` too
    def forward(
        self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head or kwargs.get("shift_labels") is not None:
            return through_trl(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        kwargs.pop("shift_labels", None)
        items = kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        return _score(hidden, labels[:, 1:], self.get_output_embeddings(), items)

    model.forward = types.MethodType(forward, model)
    return True


def _score(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: torch.nn.Linear,
    items: torch.Tensor | int | None,
) -> FusedCausalLMOutput:
    """Log-probability, entropy, mean logit and correctness of each labelled position; zero elsewhere.

    `hidden` is (batch, length, width), `labels` (batch, length), already shifted by one.
    """
    mask = labels != -100
    logits = linear(hidden[mask], head.weight, head.bias).float()
    targets = labels[mask]
    log_probs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.no_grad():
        normal = torch.log_softmax(logits, dim=-1)
        entropy = -(normal.exp() * normal).sum(-1)
        is_top1 = logits.argmax(-1) == targets
        mean_logits = logits.mean(-1)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    scattered = spread(log_probs)
    count = mask.sum().clamp(min=1) if items is None else items
    return FusedCausalLMOutput(
        loss=-scattered.sum() / count,
        log_probs=scattered,
        entropy=spread(entropy),
        log_sum_sq_probs=None,
        mean_logits=spread(mean_logits),
        is_top1=spread(is_top1),
        label_mask=mask,
        aux_loss=None,
    )
