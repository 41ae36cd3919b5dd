"""Rows that accelerate fills up the last batch of several processes with are not learnt a second time."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fmstune.training.trainers.each_row_once import mask_rows_from, new_rows


@given(st.integers(1, 40), st.integers(2, 4), st.integers(1, 5))
def test_the_last_batches_of_all_processes_hold_each_row_once(rows: int, processes: int, size: int) -> None:
    batches = BatchSampler(SequentialSampler(range(rows)), size, drop_last=False)
    learnt: list[int] = []
    for process in range(processes):
        dealt = list(BatchSamplerShard(batches, processes, process))
        rest = rows % (size * processes)
        last = dealt[-1] if not rest else dealt[-1][: new_rows(rest, process, size)]
        learnt += [row for batch in dealt[:-1] for row in batch] + last
    assert sorted(learnt) == list(range(rows))


@given(st.lists(st.integers(2, 6), min_size=1, max_size=5), st.integers(0, 5), st.booleans())
def test_masked_rows_have_no_labels_and_the_others_theirs(lengths: list[int], first: int, flat: bool) -> None:
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=flat)
    ids = [list(range(10 * (n + 1), 10 * (n + 1) + length)) for n, length in enumerate(lengths)]
    batch: dict[str, Any] = collate([{"input_ids": row, "labels": list(row)} for row in ids])
    before = batch["labels"].clone()
    mask_rows_from(batch, first)
    left = {int(label) // 10 - 1 for label in batch["labels"].flatten() if label != -100}
    assert left == set(range(min(first, len(lengths))))
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], before[kept])
