"""Worst-case rows in place of those of a stream, which have not been read yet."""

from __future__ import annotations

from typing import Any

import datasets

from fmstune.config.methods.known import METHODS
from fmstune.config.methods.record import Form
from fmstune.data.tokens.lengths import are_tokenised
from fmstune.training.tuned_trainer import TunedTrainer


def rows_to_measure(trainer: TunedTrainer) -> datasets.Dataset:
    """The training rows of a built trainer, or, for a stream, a batch of worst-case rows."""
    rows = trainer.train_dataset
    if are_tokenised(rows):
        found: datasets.Dataset = rows
        return found
    args = trainer.args
    count = args.per_device_train_batch_size * args.gradient_accumulation_steps
    vocabulary = trainer.model.config.get_text_config().vocab_size
    return worst_case_rows(METHODS[trainer.method].form, trainer.longest_row or 0, count, vocabulary)


def worst_case_rows(form: Form, length: int, count: int, vocabulary: int) -> datasets.Dataset:
    """`count` rows of a form, whose sequences have `length` tokens each, all trained."""
    ids = [number % vocabulary for number in range(length)]
    begin, rest = ids[:1], ids[1:]
    rows: dict[Form, dict[str, Any]] = {
        "tokens": {"input_ids": ids, "labels": ids},
        "judged pair": {"chosen_ids": ids, "rejected_ids": ids},
        "pair": {"prompt_ids": begin, "chosen_ids": rest, "rejected_ids": rest},
        "labelled": {"prompt_ids": begin, "completion_ids": rest, "KL_completion_ids": rest, "label": True},
    }
    return datasets.Dataset.from_dict({name: [value] * count for name, value in rows[form].items()})
