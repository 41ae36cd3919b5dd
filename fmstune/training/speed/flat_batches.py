"""Collate a batch without padding in one pass.

TRL's collator creates three tensors per row before it joins them, and then searches for the start of each
row: 0.65 ms for eight rows, where a step of the demo takes 17. Computing it from the lengths takes 0.15 ms.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fmstune.data.tokens.table import IGNORED

REAL_TOKENS = "real_tokens"
"""The key of the number of a flat batch's tokens without those that fill it up to a multiple. TRL makes each
of these a row, and counts it as a token."""


def flat_batch(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The batch of TRL's `DataCollatorForLanguageModeling(padding_free=True)` for rows that are not packed,
    including all types: the concatenated rows with their positions, bounds and indices."""
    lengths = np.array([len(row["input_ids"]) for row in rows if len(row["input_ids"])])
    ends = np.cumsum(lengths)
    begins, total = ends - lengths, int(ends[-1])
    labelled = [row.get("labels", row["input_ids"]) for row in rows]
    if (count := sum(map(len, labelled))) != total:
        raise ValueError(f"{count} labels for {total} tokens")
    labels = _joined(labelled, total)
    labels[begins] = IGNORED  # no token before it predicts it
    positions = np.arange(total) - np.repeat(begins, lengths)
    bounds = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
    longest = int(lengths.max())
    numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return {
        "input_ids": torch.from_numpy(_joined([row["input_ids"] for row in rows], total))[None],
        "labels": torch.from_numpy(labels)[None],
        "position_ids": torch.from_numpy(positions)[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": torch.from_numpy(numbers)[None],
    }


def _joined(parts: Sequence[Any], total: int) -> npt.NDArray[np.int64]:
    return np.fromiter(itertools.chain.from_iterable(parts), np.int64, total)
