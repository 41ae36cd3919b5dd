"""Attention over concatenated rows: one call for all rows equals one call per row."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fmstune.training.speed import row_attention

HEADS, GROUPS, WIDTH = 4, 2, 8


def drawn(tokens: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(1, tokens, heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(shape).transpose(1, 2).requires_grad_() for shape in shapes]


def alone(parts: list[torch.Tensor], lengths: list[int]) -> torch.Tensor:
    """Each row separately with torch's function, as (1, tokens, heads, width)."""
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    query, key, value = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in parts)
    rows = [
        scaled_dot_product_attention(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True)
        for a, b in pairwise(ends)
    ]
    return torch.cat(rows, 2).transpose(1, 2)


@pytest.mark.parametrize("lengths", [[5, 9, 1, 7], [6, 6], [4], [1, 1, 30]])
@pytest.mark.parametrize("worth", [10**9, -1], ids=["together", "by rows"])
@pytest.mark.parametrize("grouped", [True, False], ids=["in groups", "as on a GPU in float32"])
def test_rows_are_attended_to_as_if_each_were_alone(
    lengths: list[int], worth: int, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    attention = row_attention._attention

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return attention(*args, **kwargs)

    monkeypatch.setattr(row_attention, "_WORTH_A_CALL", worth)
    monkeypatch.setattr(row_attention, "_attention", counted)
    monkeypatch.setattr(row_attention, "_knows_groups", lambda query: grouped)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    module: Any = SimpleNamespace(is_causal=True, num_key_value_groups=HEADS // GROUPS, training=True)
    own, theirs = drawn(sum(lengths)), drawn(sum(lengths))
    query, key, value = own
    made, _ = row_attention._attend(
        module, query, key, value, None, cu_seq_lens_q=bounds, scaling=WIDTH**-0.5
    )
    expected = alone(theirs, lengths)
    assert len(calls) == (1 if worth > 0 else len(lengths))
    for module, _, keys, values, *_ in calls:
        assert keys.shape[1] == values.shape[1] == (GROUPS if grouped else HEADS)
        assert hasattr(module, "num_key_value_groups") is grouped
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(expected.shape)
    (made * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_rows_of_very_different_lengths_get_one_call_each() -> None:
    query = torch.empty(1, 9, 600, 64)
    assert row_attention._grid(torch.tensor([0, 550, 575, 600]), query) is None
    assert row_attention._grid(torch.tensor([0, 20, 45, 70]), query[:, :, :70]) is not None
