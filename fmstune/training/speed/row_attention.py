"""Attention over concatenated rows, each row separately, with torch's own causal kernels.

Without the flash-attn package, transformers masks such a batch as one long row, whose attention costs the
square of its total length. Here it costs the squares of the row lengths, without a mask: on a GPU in 16 bits
with one launch of torch's variable-length kernel (torch 2.10 and later), elsewhere row by row.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from fmstune.transformers_compat import sdpa

_attention, _masks = sdpa()
NAME = "sdpa_rows"
"""Its name in transformers, for `model.set_attn_implementation`."""
_WORTH_A_CALL = 250_000
"""The attention that a CPU computes, forward and backward, in the time that a call takes in addition (about
60 µs, docs/speed.md): in squared positions times heads times their width."""
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
    if attention_mask is None and not _knows_groups(query):
        module, key, value = _without_groups(module, query, key, value)
    if attention_mask is not None or bounds is None or query.shape[2] != key.shape[2]:
        whole: tuple[torch.Tensor, None]
        whole = _attention(module, query, key, value, attention_mask, **kwargs)
        return whole
    dtype = _kernel_dtype(query)
    if dtype is not None and not kwargs.get("dropout") and key.shape[-1] == value.shape[-1]:
        return _by_kernel(query.to(dtype), key.to(dtype), value.to(dtype), bounds, **kwargs), None
    if key.shape[-1] == value.shape[-1] and not kwargs.get("dropout") and (plan := _grid(bounds, query)):
        return _together(module, query, key, value, plan, **kwargs), None
    rows = [part.split(_lengths(bounds), dim=2) for part in (query, key, value)]
    parts = [_attention(module, *row, None, **kwargs)[0] for row in zip(*rows, strict=True)]
    return torch.cat(parts, dim=1), None


def _knows_groups(query: torch.Tensor) -> bool:
    """Whether torch has a fast kernel for query heads that share a key: on a GPU only in 16 bits."""
    on_gpu = query.device.type == "cuda"
    return not on_gpu or query.dtype != torch.float32 or bool(torch.is_autocast_enabled("cuda"))


def _without_groups(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A key and a value for each query head. Else torch computes the attention step by step, and keeps heads
    times squared positions for the backward pass."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return module, key, value
    # A stand-in for the module, from which transformers would read the number of groups.
    alone = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    return alone, *(part.repeat_interleave(groups, dim=1) for part in (key, value))


@dataclass(frozen=True, slots=True)
class _Grid:
    """Rows side by side, each filled up with its last token: the token at each place of the grid, and the
    place of each token."""

    rows: int
    width: int
    tokens: torch.Tensor
    places: torch.Tensor


def _grid(bounds: torch.Tensor, query: torch.Tensor) -> _Grid | None:
    """The grid of all rows, if one call on it costs less than a call for each row. Computed once for all
    layers."""
    lengths = _lengths(bounds)
    count, width = len(lengths), max(lengths)
    filled = (count * width**2 - sum(length**2 for length in lengths)) * query.shape[1] * query.shape[3]
    if query.device.type != "cpu" or filled >= _WORTH_A_CALL * (count - 1):
        return None
    known: _Grid | None = getattr(bounds, "row_grid", None)
    if known is None:
        begins = torch.tensor(list(itertools.accumulate(lengths[:-1], initial=0)))[:, None]
        steps, ends = torch.arange(width)[None], torch.tensor(lengths)[:, None]
        known = _Grid(
            count,
            width,
            (begins + steps.minimum(ends - 1)).reshape(-1),
            (steps < ends).reshape(-1).nonzero()[:, 0],
        )
        bounds.row_grid = known
    return known


def _together(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: _Grid,
    **kwargs: Any,
) -> torch.Tensor:
    """All rows in one call. No mask is needed: no token of a row sees what comes after it."""
    shape = (grid.rows, grid.width)
    spread = [
        _ToGrid.apply(part[0].transpose(0, 1), grid).unflatten(0, shape).transpose(1, 2)
        for part in (query, key, value)
    ]
    made = _attention(module, *spread, None, **kwargs)[0]
    return _FromGrid.apply(made.flatten(0, 1), grid)[None]


class _ToGrid(torch.autograd.Function):
    """The values of tokens, on their grid. What fills it up has no gradient, so nothing is summed."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, grid: _Grid) -> torch.Tensor:
        """`values` is (tokens, ...)."""
        ctx.grid = grid
        return values.index_select(0, grid.tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradients of the tokens alone."""
        return gradients[0].index_select(0, ctx.grid.places), None


class _FromGrid(torch.autograd.Function):
    """The values of tokens, from their grid."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, grid: _Grid) -> torch.Tensor:
        """`values` is (places, ...)."""
        ctx.grid = grid
        return values.index_select(0, grid.places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Zero for the fill-up positions, whose outputs are never read."""
        (given,), grid = gradients, ctx.grid
        made = given.new_zeros((len(grid.tokens), *given.shape[1:]))
        return made.index_copy_(0, grid.places, given), None


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
