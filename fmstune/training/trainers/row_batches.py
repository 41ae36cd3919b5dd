"""Collated batches as rows: extract the first rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fmstune.data.tokens.table import IGNORED, LOSS_WEIGHTS

_ALONG = ("input_ids", "labels", "position_ids", "seq_idx", LOSS_WEIGHTS)
"""The keys of shape (1, tokens) if rows are concatenated."""


class RowLengths:
    """A collator whose batches contain the lengths of their rows."""

    NAME = "row_lengths"

    def __init__(self, collator: Any) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The collator's batch."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {**self._collator(rows), self.NAME: lengths}


def row_lengths(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """The lengths of the concatenated rows of a batch; `None` if it is padded."""
    if RowLengths.NAME in batch and batch["input_ids"].shape[0] == 1:
        return torch.as_tensor(batch[RowLengths.NAME])
    if "attention_mask" in batch or batch["input_ids"].shape[0] > 1:
        return None
    positions = batch["position_ids"][0]
    begins = (positions == 0).nonzero().flatten()
    return torch.diff(begins, append=begins.new_tensor([len(positions)]))


def first_rows(batch: Mapping[str, Any], count: int, lengths: torch.Tensor | None) -> dict[str, Any]:
    """The first `count` rows of a batch. For 0, keep one without labels, as a model cannot compute zero rows.

    `lengths` are those of concatenated rows. The answers of pairs are in the two halves of a batch.
    """
    kept = max(count, 1)
    made = _first_of_flat(batch, int(lengths[:kept].sum())) if lengths is not None else _first(batch, kept)
    if count == 0 and "labels" in made:
        made["labels"] = torch.full_like(made["labels"], IGNORED)
    return made


def row_count(batch: Mapping[str, Any]) -> int:
    """The number of rows of a padded batch. A batch of pairs has no labels, and two sequences per row."""
    of_rows = batch.get("labels", batch.get("label"))
    return len(batch["input_ids"]) // 2 if of_rows is None else len(of_rows)


def _first(batch: Mapping[str, Any], kept: int) -> dict[str, Any]:
    rows = row_count(batch)

    def cut(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        if len(value) == 2 * rows:
            return torch.cat([half[:kept] for half in value.chunk(2)])
        return value[:kept] if len(value) == rows else value

    return {name: cut(value) for name, value in batch.items()}


def _first_of_flat(batch: Mapping[str, Any], end: int) -> dict[str, Any]:
    made = dict(batch)
    for name in _ALONG:
        if made.get(name) is not None:
            made[name] = made[name][:, :end]
    for side in ("q", "k"):  # row boundaries, for the kernels that need them
        if (bounds := made.get(f"cu_seq_lens_{side}")) is not None:
            made[f"cu_seq_lens_{side}"] = kept = bounds[bounds <= end]
            made[f"max_length_{side}"] = int(kept.diff().max())
    return made
