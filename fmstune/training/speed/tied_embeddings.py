"""The gradient of embeddings that are tied to the LM head, in one tensor.

Autograd makes a gradient of the whole vocabulary of the few tokens of a batch, most of it zeros, and adds it
to that of the head: of SmolLM2, whose embeddings are a fifth of the weights, that is 8 % of a step on a CPU.
Here the rows of the batch's tokens are added to the head's gradient, which is there by then.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn.functional import embedding


class _Looked(torch.autograd.Function):
    """The embeddings of tokens, whose gradient goes right into `weight.grad`.

    The first argument is there to have one that needs a gradient: with the weight itself autograd would make
    that of the whole vocabulary.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, ids: torch.Tensor, module: torch.nn.Embedding
    ) -> torch.Tensor:
        """(batch, length, width)."""
        ctx.save_for_backward(ids)
        ctx.module = module
        return embedding(ids, module.weight.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, None]:
        """Adds to what is there; what comes later is added to it by autograd."""
        (ids,), module = ctx.saved_tensors, ctx.module
        rows, ids = gradients[0].reshape(-1, gradients[0].shape[-1]), ids.reshape(-1)
        if module.padding_idx is not None:
            kept = ids != module.padding_idx
            rows, ids = rows[kept], ids[kept]
        if module.weight.grad is None:
            module.weight.grad = torch.zeros_like(module.weight)
        module.weight.grad.index_add_(0, ids, rows.to(module.weight.grad.dtype))
        return None, None, None


def share_gradient(model: Any) -> bool:
    """Let a model's tied embeddings share their gradient; whether it has such. For one process without
    sharding, and for losses whose gradients are taken by `backward`, as a Trainer's are."""
    module, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(module) is not torch.nn.Embedding or head is None or head.weight is not module.weight:
        return False
    if module.sparse or module.scale_grad_by_freq or module.max_norm is not None:
        return False
    plain, anchor = module.forward, torch.empty(0, requires_grad=True)

    def forward(self: torch.nn.Embedding, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        # Hooks of others, as of optimizers that update within the backward pass, are to see all of it.
        watched = weight._backward_hooks or weight._post_accumulate_grad_hooks
        if not (torch.is_grad_enabled() and weight.requires_grad) or watched:
            return plain(input)
        looked: torch.Tensor = _Looked.apply(anchor, input, self)
        return looked

    module.forward = types.MethodType(forward, module)
    return True
