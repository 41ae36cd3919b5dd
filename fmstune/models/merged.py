"""Merge the weights of an adapter into those of its base model."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from fmstune.errors import ModelError
from fmstune.models.locate import Place


def merged(model: Any, place: Place) -> Any:
    """The plain model with the adapter's changes. Raises `ModelError`."""
    if not hasattr(model, "merge_and_unload"):
        kind = place.adapter.kind if place.adapter is not None else ""
        raise ModelError(
            f"the adapter in {place.path} cannot be merged: PEFT merges none of the kind {kind}."
        )
    tied = _separate(model)
    try:
        plain = model.merge_and_unload(safe_merge=True)
    # PEFT raises `ValueError` for NaN in the result, `NotImplementedError` for layers that it cannot merge.
    except (ValueError, NotImplementedError) as error:
        raise ModelError(f"the adapter in {place.path} cannot be merged: {error}") from error
    head, embeddings = plain.get_output_embeddings(), plain.get_input_embeddings()
    if tied and torch.equal(head.weight, embeddings.weight):
        head.weight = embeddings.weight
    return plain


def _separate(model: Any) -> bool:
    """Give the head its own weights, if it shares those of the embeddings and one of them has an adapter:
    PEFT would merge it into both. Returns whether it did."""
    base = model.get_base_model()
    ends = (base.get_output_embeddings(), base.get_input_embeddings())
    if None in ends or not any(isinstance(end, LoraLayer) for end in ends):
        return False
    head, embeddings = (end.get_base_layer() if isinstance(end, LoraLayer) else end for end in ends)
    if head.weight is not embeddings.weight:
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    return True
