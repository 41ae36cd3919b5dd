"""Log-probabilities computed in place equal those of torch's own functions, and so do their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.training.speed import log_probs
from fmstune.training.speed.log_probs import scores


@settings(max_examples=40)
@given(
    rows=st.integers(0, 9), vocabulary=st.integers(1, 40), at_once=st.integers(1, 200),
    scale=st.sampled_from([0.0, 1.0, 80.0]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_they_equal_those_of_the_plain_functions(
    rows: int, vocabulary: int, at_once: int, scale: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, vocabulary, generator=draw, dtype=torch.float32)
    targets = torch.randint(vocabulary, (rows,), generator=draw)
    weights = torch.randn(rows, generator=draw)
    plain, own = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    normal = plain.log_softmax(-1)
    (normal.gather(-1, targets[:, None])[:, 0] * weights).sum().backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_probs, "_BYTES_AT_ONCE", at_once)
        found = scores(own * 1, targets)
    (found.log_probs * weights).sum().backward()
    close: Any = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.log_probs, normal.gather(-1, targets[:, None])[:, 0], **close)
    torch.testing.assert_close(found.entropy, -(normal.exp() * normal).sum(-1), **close)
    torch.testing.assert_close(found.mean_logits, logits.mean(-1), **close)
    assert torch.equal(found.is_top1, logits.argmax(-1) == targets)
    torch.testing.assert_close(own.grad, plain.grad, **close)
    assert not found.entropy.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_logit_makes_the_loss_non_finite(bad: float) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    found = scores(logits, torch.tensor([0, 1])).log_probs
    assert bool(torch.isfinite(found[0]))
    assert not bool(torch.isfinite(found[1]))


def test_a_second_backward_pass_is_refused_because_the_logits_are_gone() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    loss = scores(logits * 1, torch.tensor([0, 1])).log_probs.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="made already"):
        loss.backward()
