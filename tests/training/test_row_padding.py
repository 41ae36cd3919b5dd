"""Rows side by side: attention and gradients of each row as it has them alone, whichever way is cheaper."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.training.speed import row_attention
from fmstune.training.speed.row_padding import pays, put_back, put_side_by_side, side_by_side

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def attended(lengths: list[int], *, together: bool, groups: int, **kwargs: Any) -> list[torch.Tensor]:
    """The attention over rows, and the gradients of queries, keys and values."""
    torch.manual_seed(0)
    heads = (2 * groups, 2, 2)
    parts = [torch.randn(1, sum(lengths), each, 8).transpose(1, 2).requires_grad_() for each in heads]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    bounds.row_layouts = {16 * groups: side_by_side(lengths) if together else None}
    module: Any = SimpleNamespace(num_key_value_groups=groups)
    query, key, value = parts
    made, _ = row_attention._attend(
        module, query, key, value, None, cu_seq_lens_q=bounds, scaling=0.3, **kwargs
    )
    weights = torch.arange(made.numel()).reshape(made.shape).sin()  # each value counts in its own way
    return [made, *torch.autograd.grad((made * weights).sum(), parts)]


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from([1, 2]))
def test_attention_and_gradients_are_those_row_by_row(lengths: list[int], groups: int) -> None:
    for one, other in zip(
        attended(lengths, together=True, groups=groups),
        attended(lengths, together=False, groups=groups),
        strict=True,
    ):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@given(LENGTHS)
def test_each_token_comes_back_to_its_place(lengths: list[int]) -> None:
    layout = side_by_side(lengths)
    tokens = torch.arange(sum(lengths) * 4.0).reshape(1, -1, 2, 2)
    (placed,) = put_side_by_side(layout, tokens.transpose(1, 2))
    assert placed.shape == (len(lengths), 2, max(lengths), 2)
    assert torch.equal(put_back(layout, placed.transpose(1, 2)), tokens)
    for row, own in zip(placed, tokens[0].split(lengths), strict=True):
        assert torch.equal(row[:, : len(own)].transpose(0, 1), own)


@pytest.mark.parametrize("given_word", [{"is_causal": False}, {"dropout": 0.5}])
def test_what_would_not_be_the_same_is_done_row_by_row(given_word: dict[str, Any]) -> None:
    one, other = (attended([3, 5], together=each, groups=1, **given_word) for each in (True, False))
    if "dropout" not in given_word:
        assert all(map(torch.equal, one, other))
    bounds = torch.tensor([0, 3, 8])
    query = torch.zeros(1, 2, 8, 8)
    assert row_attention._layout(torch.nn.Module(), query, bounds, given_word) is None


def test_small_models_with_short_rows_have_them_side_by_side() -> None:
    assert pays([25] * 8, 96)  # the demo
    assert not pays([25] * 8, 576)  # SmolLM2
    assert not pays([10] * 7 + [100], 96)
    assert not pays([1], 96)
