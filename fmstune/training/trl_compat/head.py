"""TRL's fused LM head. `add_fused_lm_head` is public, but not its use in a trainer's model."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations import deepspeed
from transformers.utils import is_triton_available
from trl.trainer.utils import FusedCausalLMOutput

__all__ = ["FusedCausalLMOutput"]  # reexported; everything else is defined here


@dataclass(frozen=True, slots=True)
class HeadCall:
    """A call of `model` for scores of `labels`, or of `shifted` ones. `items` divides the loss; `args` and
    `kwargs` are the other arguments. `plain` is the model's forward without TRL's head, `fused` with it."""

    model: PreTrainedModel
    plain: Callable[..., Any]
    fused: Callable[..., FusedCausalLMOutput]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Any
    shifted: Any
    items: torch.Tensor | int | None

    def by_trl(self) -> FusedCausalLMOutput:
        """TRL's own scores."""
        return self.fused(
            *self.args,
            labels=self.labels,
            shift_labels=self.shifted,
            num_items_in_batch=self.items,
            **self.kwargs,
        )


def score_by(model: PreTrainedModel, scored: Callable[[HeadCall], FusedCausalLMOutput]) -> None:
    """Make `model`, which already has TRL's fused LM head, score labels in another way."""
    through_trl: Any = model.forward
    plain = functools.partial(through_trl, fused_lm_head=False)
    fused = functools.partial(through_trl, fused_lm_head=True)

    # The Trainer and `generate` inspect its signature for the arguments that the model takes. That of a bound
    # method has no `self`, and binding this one would take away the next argument.
    @functools.wraps(through_trl.__func__)
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain(*args, **kwargs)
        labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
        items = kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        return scored(HeadCall(self, plain, fused, args, kwargs, labels, shifted, items))

    model.forward = types.MethodType(forward, model)


def scores_labelled_alone(device: torch.device) -> bool:
    """Whether TRL's LM head skips the logits of unlabelled positions, as it does with Triton."""
    return device.type in ("cuda", "xpu") and is_triton_available()


@contextlib.contextmanager
def on_whole_weights() -> Iterator[None]:
    """Use TRL's LM head before DeepSpeed's stage 3 has partitioned the weights: as soon as it is configured,
    the head asks them for the state of their partitions, and fails."""
    found = deepspeed._hf_deepspeed_config_weak_ref
    config = None if found is None else found()
    if config is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


FUSED = {"fused_lm_head": True}
"""The keyword argument that requests a `FusedCausalLMOutput` from a model's forward."""


def is_fused(output: Any) -> bool:
    """Whether an output comes from the fused head, rather than the logits that `compute_metrics` needs."""
    return hasattr(output, "label_mask")
