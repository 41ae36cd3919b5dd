"""Attention over concatenated rows, each row separately, with torch's own causal kernels.

Without the flash-attn package, transformers masks such a batch as one long row, whose attention costs the
square of its total length. Here it costs the squares of the row lengths, without a mask: on a GPU in 16 bits
with one launch of torch's variable-length kernel (torch 2.10 and later), elsewhere row by row.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from fmstune.transformers_compat import sdpa

_attention, _masks = sdpa()
NAME = "sdpa_rows"
"""Its name in transformers, for `model.set_attn_implementation`."""
_CAUSAL = (-1, 0)
_WIDEST = 256
"""The largest head dimension of FlashAttention 2; it must be a multiple of eight."""


def _found_kernel() -> Callable[..., Any] | None:
    """`torch.nn.attention.varlen.varlen_attn` of torch 2.11 and later; in 2.10 it lacks window and scale."""
    try:
        kernel: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return kernel if {"window_size", "scale"} <= inspect.signature(kernel).parameters.keys() else None


_kernel = _found_kernel()
_grouped = _kernel is not None and "enable_gqa" in inspect.signature(_kernel).parameters


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`query`, `key` and `value` are (1, heads, tokens, width); `cu_seq_lens_q` holds the rows' bounds."""
    bounds = kwargs.get("cu_seq_lens_q")
    if attention_mask is not None or bounds is None or query.shape[2] != key.shape[2]:
        whole: tuple[torch.Tensor, None]
        whole = _attention(module, query, key, value, attention_mask, **kwargs)
        return whole
    dtype = _kernel_dtype(query)
    if dtype is not None and not kwargs.get("dropout") and key.shape[-1] == value.shape[-1]:
        return _by_kernel(query.to(dtype), key.to(dtype), value.to(dtype), bounds, **kwargs), None
    rows = [part.split(_lengths(bounds), dim=2) for part in (query, key, value)]
    parts = [_attention(module, *row, None, **kwargs)[0] for row in zip(*rows, strict=True)]
    return torch.cat(parts, dim=1), None


def _kernel_dtype(query: torch.Tensor) -> torch.dtype | None:
    """The dtype for the kernel; `None` if it cannot be used."""
    width = query.shape[-1]
    if _kernel is None or query.device.type != "cuda" or width > _WIDEST or width % 8:
        return None
    # Autocast does not cover this kernel, and rotary embeddings turn its 16-bit values back into float32.
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else query.dtype
    recent = torch.cuda.get_device_capability(query.device) >= (8, 0)
    return dtype if recent and dtype in (torch.bfloat16, torch.float16) else None


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    """The result as (1, tokens, heads, width), as transformers expects it."""
    assert _kernel is not None
    longest = int(kwargs.get("max_length_q") or max(_lengths(bounds)))
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"enable_gqa": groups > 1} if _grouped else {}
    if groups > 1 and not _grouped:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    tokens = (part[0].transpose(0, 1) for part in (query, key, value))
    bounds = bounds.to(torch.int32)
    scale = kwargs.get("scaling")
    made: torch.Tensor = _kernel(
        *tokens, bounds, bounds, longest, longest, scale=scale, window_size=_CAUSAL, **options
    )
    return made[None]


def _lengths(bounds: torch.Tensor) -> list[int]:
    """The rows' lengths, read once for all layers, because each read synchronises with a GPU."""
    known: list[int] | None = getattr(bounds, "row_lengths", None)
    if known is None:
        known = bounds.diff().tolist()
        bounds.row_lengths = known
    return known


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask for rows without padding; sdpa's mask otherwise (sliding window, padded batch)."""
    if kwargs.get("attention_mask") is None and kwargs.get("local_size") is None:
        return None
    mask: torch.Tensor | None = _masks(*args, **kwargs)
    return mask


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
