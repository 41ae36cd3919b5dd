"""Tests a loaded model with one short row, to find out what it does rather than what it is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from transformers import PreTrainedModel

from fmstune.errors import ModelError

_TOKENS = 12


def probe(model: PreTrainedModel) -> torch.Tensor:
    """The row: different tokens of the model's vocabulary, the same at each call."""
    embeddings = model.get_input_embeddings().weight
    ids = [(7 * i * i + 3 * i + 11) % embeddings.shape[0] for i in range(_TOKENS)]
    return torch.tensor([ids], device=embeddings.device)


@contextlib.contextmanager
def evaluated(model: PreTrainedModel) -> Iterator[None]:
    """Use the model without dropout and gradients within this block."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def succeeds(question: Callable[[], bool]) -> bool:
    """The answer to a question about a model. An architecture may fail in any way on a batch that it does not
    expect; then the answer is no."""
    try:
        return question()
    except Exception:
        return False


def require_causal(model: PreTrainedModel, name: str) -> None:
    """Raise `ModelError` if the model sees the tokens that it should predict, as BERT models do without
    `is_decoder` in the config: the loss drops to zero, but the model cannot generate."""
    if _sees_ahead(model):
        raise ModelError(
            f"{name} sees the tokens that it is to predict: models of type {model.config.model_type} can "
            'learn to generate if config.json has "is_decoder": true.'
        )


def _sees_ahead(model: PreTrainedModel) -> bool:

    def changes() -> bool:
        ids = probe(model)
        other = ids.clone()
        other[0, -1] = (other[0, -1] + 1) % model.get_input_embeddings().weight.shape[0]
        before, after = (model(input_ids=each, use_cache=False).logits[0, :-1] for each in (ids, other))
        # Experts with limited capacity may then serve other tokens; looking ahead shows at every position.
        return bool(((after - before).abs().amax(-1) > 1e-4 * before.abs().max()).all())

    if any(weight.is_meta or hasattr(weight, "ds_id") for weight in model.parameters()):
        return False
    with evaluated(model):
        return succeeds(changes)
