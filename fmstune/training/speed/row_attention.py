"""Attention over rows that lie one after another: each row by itself, with torch's own causal kernels.

Without the package flash-attn, transformers masks such a batch as one long row, whose attention costs the
square of all its tokens. Here it costs the squares of the rows, without a mask: on a GPU in 16 bits by one
launch of the kernel for rows of many lengths that torch 2.10 and later carries, elsewhere row by row, or
side by side (`row_padding`).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from fmstune.training.speed.row_padding import SideBySide, pays, put_back, put_side_by_side, side_by_side
from fmstune.transformers_compat import sdpa

_attention, _masks = sdpa()
NAME = "sdpa_rows"
"""What transformers knows it by, as `model.set_attn_implementation` takes it."""
_CAUSAL = (-1, 0)
_WIDEST = 256
"""The most values of a head that FlashAttention 2 takes, in steps of eight."""


def _found_kernel() -> Callable[..., Any] | None:
    """`torch.nn.attention.varlen.varlen_attn`, as torch 2.11 and later has it; 2.10 has no window and no
    scale."""
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
    """`query`, `key` and `value` are (1, heads, tokens, width); `cu_seq_lens_q` has the rows' bounds."""
    bounds = kwargs.get("cu_seq_lens_q")
    if attention_mask is not None or bounds is None or query.shape[2] != key.shape[2]:
        whole: tuple[torch.Tensor, None]
        whole = _attention(module, query, key, value, attention_mask, **kwargs)
        return whole
    dtype = _kernel_dtype(query)
    if dtype is not None and not kwargs.get("dropout") and key.shape[-1] == value.shape[-1]:
        return _by_kernel(query.to(dtype), key.to(dtype), value.to(dtype), bounds, **kwargs), None
    if (layout := _layout(module, query, bounds, kwargs)) is not None:
        padded = put_side_by_side(layout, query, key, value)
        return put_back(layout, _attention(module, *padded, None, **kwargs)[0]), None
    rows = [part.split(_lengths(bounds), dim=2) for part in (query, key, value)]
    parts = [_attention(module, *row, None, **kwargs)[0] for row in zip(*rows, strict=True)]
    return torch.cat(parts, dim=1), None


def _kernel_dtype(query: torch.Tensor) -> torch.dtype | None:
    """What the kernel is to compute in; `None` where it can't."""
    width = query.shape[-1]
    if _kernel is None or query.device.type != "cuda" or width > _WIDEST or width % 8:
        return None
    # Autocast knows nothing of this kernel, and rotary embeddings make float32 of what it has made 16 bits.
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else query.dtype
    recent = torch.cuda.get_device_capability(query.device) >= (8, 0)
    return dtype if recent and dtype in (torch.bfloat16, torch.float16) else None


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    """(1, tokens, heads, width), as transformers takes it."""
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


def _layout(
    module: torch.nn.Module, query: torch.Tensor, bounds: torch.Tensor, kwargs: Mapping[str, Any]
) -> SideBySide | None:
    """The rows side by side, if that is exact and pays; decided once for all layers that are as wide."""
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    # Dropout would be drawn for other positions, and a bias is of all tokens.
    if query.device.type != "cpu" or not causal or kwargs.get("dropout") or "position_bias" in kwargs:
        return None
    values, lengths = query.shape[1] * query.shape[3], _lengths(bounds)
    known: dict[int, SideBySide | None] = bounds.__dict__.setdefault("row_layouts", {})
    if values not in known:
        known[values] = side_by_side(lengths) if pays(lengths, values) else None
    return known[values]


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
