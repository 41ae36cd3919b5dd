"""kto with TRL's `KTOTrainer`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
from trl import KTOConfig, KTOTrainer

from fmstune.data.prepare import PreparedData
from fmstune.training.methods.trained import Trained
from fmstune.training.trainers.preferences import PreferenceTuner
from fmstune.training.trl_compat.steps import compares_within_batch


class KtoTuner(PreferenceTuner, KTOTrainer):
    """TRL's trainer, with other answers of each batch as a comparison for its rows."""

    train_dataset: Any

    def prepare_rows(self, rows: Any, args: Any, packing: bool, prepared: Any) -> Any:
        """The comparison depends on the batch size over all processes, so that several processes learn what
        one does with a batch of all their rows."""
        if not compares_within_batch(self):
            return rows
        return with_other_answers(rows, args.per_device_train_batch_size * args.world_size)

    def batch_size_changed(self) -> None:
        """The same, for another size."""
        if compares_within_batch(self):
            size = self.args.per_device_train_batch_size * self.args.world_size
            self.train_dataset = with_other_answers(self.train_dataset, size)


def with_other_answers(rows: Any, batch: int) -> Any:
    """The rows with the column `KL_completion_ids`: in each batch, the answer of the row before.

    Prompts with answers to other prompts are what kto estimates its reference point from (Ethayarajh et al.
    2024, section 4.2).
    """

    def turned(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        answers = examples["completion_ids"]
        return {"KL_completion_ids": [*answers[-1:], *answers[:-1]]}

    if not isinstance(rows, datasets.Dataset):
        return rows.map(turned, batched=True, batch_size=batch)
    features = rows.features | {"KL_completion_ids": rows.features["completion_ids"]}
    alone = rows.remove_columns([name for name in rows.column_names if name == "KL_completion_ids"])
    return alone.map(
        turned,
        batched=True,
        batch_size=batch,
        features=datasets.Features(features),
        keep_in_memory=True,
        load_from_cache_file=False,
    )


def _labels(data: PreparedData, args: Any) -> Iterator[str]:
    """Warn if one label is rarer than its weight compensates: the weight of good answers times their number
    should be 1 to 4/3 of that of bad ones (Ethayarajh et al. 2024, equation 8)."""
    if not isinstance(data.train, datasets.Dataset):
        return
    labels = data.train["label"]
    good = sum(labels)
    bad = len(labels) - good
    if not good or not bad or 1 <= args.desirable_weight * good / (args.undesirable_weight * bad) <= 4 / 3:
        return
    lower = args.undesirable_weight * bad / good
    upper = args.desirable_weight * good / bad
    yield (
        "there are more answers of one label than of the other; TRL advises a weight for one of them: "
        f"training.desirable_weight within [{lower:.3g}, {lower * 4 / 3:.3g}], or "
        f"training.undesirable_weight within [{upper * 3 / 4:.3g}, {upper:.3g}]"
    )


TRAINED = Trained(KTOConfig, KtoTuner, _labels)
