"""NEFTune: noise on the embeddings, scaled by each row's own length.

transformers uses the width of the batch as the length, which depends on the other rows in the batch, and
without padding is the total of all rows. The authors' code uses each row's own tokens
(https://huggingface.co/papers/2310.05914: uniform in ±alpha / √(length · width)).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch


class RowNoise:
    """The noise of one training run. Call `next_batch` before each forward pass."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._lengths: torch.Tensor | None = None

    def next_batch(self, inputs: Mapping[str, Any]) -> None:
        """Read the row lengths from the arguments of the model's forward."""
        self._lengths = _lengths(inputs)

    @contextlib.contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Add the noise to the model's embeddings while it trains."""
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        hook = bare.get_input_embeddings().register_forward_hook(self._add)
        try:
            yield
        finally:
            hook.remove()

    def _add(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not module.training:
            return None
        lengths: Any = self._lengths
        if lengths is None or lengths.shape[1] not in (1, output.shape[1]):
            lengths = torch.full((1, 1), output.shape[1])
        size = self._alpha / torch.sqrt(lengths.to(output.device) * float(output.shape[-1]))
        return output + torch.empty_like(output).uniform_(-1, 1) * size[..., None].to(output.dtype)


def _lengths(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """The length of each token's row: (rows, 1), or (1, tokens) if the rows are concatenated."""
    bounds, mask = inputs.get("cu_seq_lens_q"), inputs.get("attention_mask")
    if bounds is not None:
        rows = bounds.diff()
        return rows.repeat_interleave(rows)[None]
    if mask is not None and mask.dim() == 2:
        return mask.sum(-1, keepdim=True).clamp(min=1)
    return None
