"""The gradient of embeddings that are the weights of the LM head as well, as one tensor of their size.

For the rows that were looked up torch makes a tensor of zeros of the vocabulary's size, and adds that to the
head's gradient: of SmolLM2, 0.45 GB of memory written and read at each step. A sparse gradient of these rows
is half of that. As the head's is dense, what hooks, clipping and the optimizer get is dense as well, and the
same up to rounding.

What was tried and is not used: oneDNN multiplies 6 % faster than MKL on AMD's Zen 4
(`torch.ops.mkldnn._linear_pointwise`), but keeps 0.6 MB for each shape, of which batches without padding have
hundreds. SwiGLU as one function in blocks that fit the cache was no faster, nor was attention by `bmm`.
"""

from __future__ import annotations

from typing import Any

import torch

_LEAST = 1 << 22
"""Values; the gradient of smaller embeddings stays in the cache, where sparse ones cost more."""


def look_up_sparsely(model: Any) -> bool:
    """Let the embeddings of `model` have a sparse gradient, if they are the weights of its head as well;
    whether they do. For a model of which every loss comes through that head, whose gradient is dense."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embeddings, torch.nn.Embedding) or not isinstance(head, torch.nn.Linear):
        return False
    weight = embeddings.weight
    if (
        weight is not head.weight
        or weight.device.type != "cpu"
        or weight.numel() < _LEAST
        or embeddings.scale_grad_by_freq  # which torch has for dense gradients alone
        # Several processes exchange gradients by what they expect of each module.
        or (torch.distributed.is_available() and torch.distributed.is_initialized())
    ):
        return False
    embeddings.sparse = True
    return True
