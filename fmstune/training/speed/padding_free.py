"""Batches without padding: the rows of a batch are concatenated to one sequence, with positions per row.

Used only if it is exact and faster. Whether a model keeps the rows separate depends on its attention and its
layers, so the loaded model is tested (`keeps_rows_apart`); a model that fails the test for any reason is
trained with padding. It is faster if each row has its own attention (`row_attention`, FlashAttention); a
batch that is masked as one long row costs the square of its length.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fmstune.training.speed import row_attention
from fmstune.transformers_compat import attention_of, can_set_attention

_TOLERANCE = 0.05
"""Relative to the difference that mixing the rows makes: far above rounding, even in bfloat16, and far below
any leak."""
_FIRST, _SECOND = 14, 10
_SAMPLED_BATCHES = 200
_LEAST_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Padding:
    """The padding of a run: the `share` of positions in padded batches that hold no token, whether padding is
    `avoided`, and `why`, as shown to users."""

    share: float
    avoided: bool
    why: str

    def line(self) -> str:
        """As shown to users: `no padding (34% saved)`, `34% padding`."""
        if not self.avoided:
            return f"{self.share:.0%} padding"
        return f"no padding ({self.share:.0%} saved)" if self.share else "no padding"


def decide(
    model: Any,
    lengths: Sequence[int],
    batch_size: int,
    asked: bool | None,
    *,
    seed: int = 0,
    compiled: bool = False,
    setting: str = "padding_free",
    autocast: torch.dtype | None = None,
) -> Padding:
    """Whether to train `model` without padding, on rows of these lengths (in tokens).

    Sets the model's attention accordingly. `asked` is the user's setting, or `None`; `setting` is its name.
    `compiled` means that torch will compile the model. `autocast` is the dtype that it will compute in, if
    different from its weights', because the choice of kernels depends on it. Raises `ValueError` if the user
    asked for it but the model mixes the rows.
    """
    device = next(model.parameters()).device.type
    with torch.autocast(device, autocast) if autocast else contextlib.nullcontext():
        return _decided(model, lengths, batch_size, asked, seed, compiled, setting)


def _decided(
    model: Any,
    lengths: Sequence[int],
    batch_size: int,
    asked: bool | None,
    seed: int,
    compiled: bool,
    setting: str,
) -> Padding:
    drawn = _drawn(lengths, batch_size, seed)
    # The lengths of a stream are unknown, so there is no sample.
    share = 1 - sum(map(sum, drawn)) / max(1, sum(max(rows) * len(rows) for rows in drawn)) if drawn else 0.0
    if asked is False:
        return Padding(share, False, "training.padding_free = false")
    if not asked and drawn and share < _LEAST_SHARE:
        return Padding(share, False, "there is next to none")
    by_rows = not compiled and _attend_by_rows(model)
    if not by_rows and not keeps_rows_apart(model, _reference(model)):
        if asked:
            raise ValueError(
                f"training.{setting} = true would mix the rows of a batch: this model does not keep them "
                'apart; leave it out, or try model.attn_implementation = "sdpa".'
            )
        return Padding(share, False, "this model does not keep rows apart without it")
    if asked or by_rows or "flash" in attention_of(model.config):
        return Padding(share, True, "asked for" if asked else "each row keeps its own attention")
    if _work_of_one_row(model, drawn) < 1:
        return Padding(share, True, "less work, as one masked sequence")
    return Padding(share, False, "with these lengths it costs less than one long sequence")


@dataclass(frozen=True, slots=True)
class _Reference:
    """Two rows, with the logits of each alone, and of the second after the first."""

    first: list[int]
    second: list[int]
    begins: torch.Tensor
    alone: torch.Tensor
    mixed: torch.Tensor


def _reference(model: Any) -> _Reference | None:
    """`None` for a model that does not accept concatenated rows."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    on_meta = next(model.parameters()).device.type == "meta"
    if on_meta or "position_ids" not in inspect.signature(bare.forward).parameters:
        return None
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    ids = [(7 * i * i + 3 * i + 11) % vocabulary for i in range(_FIRST + _SECOND)]
    first, second = ids[:_FIRST], ids[_FIRST:]
    try:
        alone = (_logits(model, [first]), _logits(model, [second]), _logits(model, [ids]))
    except Exception:  # hybrid models reject such batches with various errors; they are trained with padding
        return None
    return _Reference(first, second, *alone)


def keeps_rows_apart(model: Any, reference: _Reference | None) -> bool:
    """Whether the model, given two rows as one sequence, computes the same for each as for the row alone.

    Differences are measured against the one that the first row makes when it actually precedes the second.
    """
    if reference is None:
        return False
    try:
        flat = _logits(model, [reference.first, reference.second])
    except Exception:  # it does not accept such a batch at all
        return False
    if flat.shape[1] != _FIRST + _SECOND:  # the model adds its own tokens, such as those of a tuned prompt
        return False
    begins, alone = flat[:, :_FIRST], flat[:, _FIRST:]
    leak = max(_distance(alone, reference.alone), _distance(begins, reference.begins))
    return leak <= _TOLERANCE * _distance(reference.mixed[:, _FIRST:], reference.alone)


def _attend_by_rows(model: Any) -> bool:
    """Give each row its own attention. Returns whether that works for this model; if not, it is unchanged."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    reference = _reference(model) if attention_of(bare.config) == "sdpa" else None
    if reference is None or not can_set_attention(bare):
        return False
    bare.set_attn_implementation(row_attention.NAME)
    if keeps_rows_apart(model, reference):
        return True
    bare.set_attn_implementation("sdpa")
    return False


def _logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate([{"input_ids": row} for row in rows])
    del batch["labels"]
    device = next(model.parameters()).device
    batch = {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(**batch, use_cache=False).logits.float()
    finally:
        model.train(was_training)
    return logits


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _drawn(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """The row lengths of randomly sampled batches."""
    order = random.Random(seed)
    count = min(_SAMPLED_BATCHES, math.ceil(len(lengths) / batch_size))
    return [order.choices(lengths, k=min(batch_size, len(lengths))) for _ in range(count)]


def _work_of_one_row(model: Any, drawn: Sequence[Sequence[int]]) -> float:
    """The cost of batches as one masked sequence each, relative to padded batches."""
    width = float(getattr(model.config.get_text_config(), "hidden_size", 0) or 1)
    # Cost per token: about 12 squared widths for the weights, and twice the width for each position that it
    # attends to, which takes about three times as long per operation on a CPU (measured with SmolLM2-135M).
    weights, seen = 12 * width, 3 * 2
    masked = sum(total * weights + seen * total * total for total in map(sum, drawn))
    padded = sum(len(rows) * max(rows) * (weights + seen * max(rows)) for rows in drawn)
    return masked / max(1.0, padded)
