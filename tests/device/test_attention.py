"""The kernel for rows of different lengths computes, in one launch, the attention of each row separately."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fmstune.training.speed import row_attention
from tests.support.on_device import Device, Row

pytestmark = pytest.mark.device
LENGTHS = [1, 7, 128, 129, 700]


@pytest.mark.parametrize("key_heads", [8, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_launch_equals_attention_row_by_row(
    dtype: torch.dtype, key_heads: int, gpu: Device, row: Row
) -> None:
    made = torch.Generator("cuda").manual_seed(0)
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32, device="cuda")
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 64, device="cuda", generator=made, requires_grad=True)
        for heads in (8, key_heads, key_heads)
    )
    weights = torch.randn(1, sum(LENGTHS), 8, 64, device="cuda", generator=made)
    exact = [
        scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True).transpose(1, 2)
        for parts in zip(*(each.split(LENGTHS, dim=2) for each in (query, key, value)), strict=True)
    ]
    expected = torch.autograd.grad((torch.cat(exact, dim=1) * weights).sum(), (query, key, value))
    with torch.autocast("cuda", dtype):
        assert row_attention._kernel_dtype(query) is dtype, (
            "torch has no kernel for rows of different lengths"
        )
        found, _ = row_attention._attend(torch.nn.Module(), query, key, value, None, cu_seq_lens_q=bounds)
    assert found.dtype is dtype
    gradients = torch.autograd.grad((found.float() * weights).sum(), (query, key, value))
    pairs = [(found.float(), torch.cat(exact, dim=1)), *zip(gradients, expected, strict=True)]
    apart = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    row(f"attention, {dtype}, {8 // key_heads} queries a key", f"{apart:.0e} from float32, row by row")
    assert apart < 0.02
