"""kto with TRL's `KTOTrainer`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
from trl import KTOConfig, KTOTrainer

from fmstune.data.prepare import PreparedData
from fmstune.text import counted
from fmstune.training.methods.trained import Trained
from fmstune.training.trainers.preferences import PreferenceTuner
from fmstune.training.trl_compat.steps import compares_within_batch


class KtoTuner(PreferenceTuner, KTOTrainer):
    """TRL's trainer, with other answers of each batch as a comparison for its rows."""

    train_dataset: Any
    own_prompts: int
    """The rows, of training and evaluation, that are compared with an answer to their own prompt."""
    compared: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.own_prompts = self.compared = 0
        super().__init__(*args, **kwargs)

    def prepare_rows(self, rows: Any, args: Any, packing: bool, prepared: Any) -> Any:
        """The comparison depends on the batch size over all processes, so that several processes learn what
        one does with a batch of all their rows."""
        if not compares_within_batch(self):
            return rows
        met: list[int] = []
        made = with_other_answers(rows, args.per_device_train_batch_size * args.world_size, met)
        if isinstance(rows, datasets.Dataset):
            self.own_prompts += sum(met)
            self.compared += len(rows)
        return made

    def row_notes(self) -> Iterator[str]:
        if self.own_prompts > self.compared // 100:  # a last batch of one row is not worth a message
            yield (
                f"kto compares {self.own_prompts:,} of {counted(self.compared, 'row')} with an answer to "
                "their own prompt instead of another's, as their batches have too few prompts: raise "
                "training.per_device_train_batch_size"
            )

    def batch_size_changed(self) -> None:
        """The same, for another size."""
        if compares_within_batch(self):
            size = self.args.per_device_train_batch_size * self.args.world_size
            self.train_dataset = with_other_answers(self.train_dataset, size)


def with_other_answers(rows: Any, batch: int, met: list[int] | None = None) -> Any:
    """The rows with the column `KL_completion_ids`: in each batch, the answer of an earlier row, to another
    prompt if there is one. `met` receives, for each batch, the number of rows without.

    Prompts with answers to other prompts are what kto estimates its reference point from (Ethayarajh et al.
    2024, section 4.2). TRL takes the row before, which in the two rows of a pair has the same prompt.
    """

    def turned(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        distance = _distance(prompts := examples["prompt_ids"])
        if met is not None:
            met.append(_same(prompts, distance))
        return {"KL_completion_ids": _shifted(examples["completion_ids"], distance)}

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


def _distance(prompts: Sequence[list[int]]) -> int:
    """The smallest number of rows between a row and the one before that it is compared with, for which the
    fewest rows meet their own prompt."""
    distances = range(1, max(len(prompts), 2))
    free = (distance for distance in distances if not _same(prompts, distance))
    found = next(free, None)
    return min(distances, key=lambda each: _same(prompts, each)) if found is None else found


def _same(prompts: Sequence[list[int]], distance: int) -> int:
    """How many rows have the prompt of the row at that distance before them."""
    return sum(map(operator.eq, prompts, _shifted(prompts, distance)))


def _shifted(values: Sequence[Any], distance: int) -> list[Any]:
    return [*values[-distance:], *values[:-distance]]


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
