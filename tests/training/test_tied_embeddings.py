"""Tied embeddings have the gradient that autograd gives them, without a second tensor of that size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fmstune import demo
from fmstune.training.speed.tied_embeddings import share_gradient


def gradient(model: Any, batches: int = 1, watch: bool = False) -> torch.Tensor:
    weight = model.get_input_embeddings().weight
    seen: list[torch.Tensor] = []
    if watch:
        weight.register_post_accumulate_grad_hook(lambda held: seen.append(held.grad.clone()))
    for batch in range(batches):
        ids = torch.arange(24).reshape(2, 12) * 7 % 50 + batch
        model(input_ids=ids, labels=ids).loss.backward()
    found = seen[0] if watch else weight.grad
    assert found is not None
    return found


@pytest.fixture
def tied() -> Any:
    model = demo.build_model()
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("padding", [None, 7])
def test_the_gradient_is_autograds(tied: Any, batches: int, padding: int | None) -> None:
    tied.get_input_embeddings().padding_idx = padding
    plain = copy.deepcopy(tied)
    assert share_gradient(tied)
    torch.testing.assert_close(gradient(tied, batches), gradient(plain, batches), rtol=1e-5, atol=1e-8)


def test_one_who_looks_at_the_gradient_when_it_is_made_sees_all_of_it(tied: Any) -> None:
    plain = copy.deepcopy(tied)
    assert share_gradient(tied)
    assert torch.equal(gradient(tied, watch=True), gradient(plain, watch=True))


def test_frozen_and_separate_embeddings_are_left_alone(tied: Any) -> None:
    tied.get_input_embeddings().weight.requires_grad_(False)
    assert share_gradient(tied)
    ids = torch.arange(6)[None]
    tied(input_ids=ids, labels=ids).loss.backward()
    assert tied.get_input_embeddings().weight.grad is None
    apart = demo.build_model()
    apart.get_output_embeddings().weight = torch.nn.Parameter(apart.get_output_embeddings().weight.clone())
    assert not share_gradient(apart)
