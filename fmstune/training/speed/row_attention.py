"""Attention over rows that lie one after another: each row by itself, with torch's own causal kernel.

Without FlashAttention's kernel for rows of many lengths, transformers masks such a batch as one long row,
whose attention costs the square of all its tokens. Here it costs the squares of the rows, without a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from fmstune.transformers_compat import sdpa

_attention, _masks = sdpa()
NAME = "sdpa_rows"
"""What transformers knows it by, as `model.set_attn_implementation` takes it."""


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`query`, `key` and `value` are (1, heads, tokens, width); `cu_seq_lens_q` has the rows' bounds."""
    bounds = kwargs.get("cu_seq_lens_q")
    if attention_mask is not None or bounds is None or query.shape[2] != key.shape[2]:
        whole: tuple[torch.Tensor, None]
        whole = _attention(module, query, key, value, attention_mask, **kwargs)
        return whole
    rows = [part.split(_lengths(bounds), dim=2) for part in (query, key, value)]
    parts = [_attention(module, *row, None, **kwargs)[0] for row in zip(*rows, strict=True)]
    return torch.cat(parts, dim=1), None


def _lengths(bounds: torch.Tensor) -> list[int]:
    """The rows' lengths, read once for all layers: on a GPU each reading waits for it."""
    known: list[int] | None = getattr(bounds, "row_lengths", None)
    if known is None:
        known = bounds.diff().tolist()
        bounds.row_lengths = known
    return known


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask for whole rows without padding; that of sdpa for all else: a sliding window, a padded batch."""
    if kwargs.get("attention_mask") is None and kwargs.get("local_size") is None:
        return None
    mask: torch.Tensor | None = _masks(*args, **kwargs)
    return mask


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
