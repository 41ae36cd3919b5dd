"""Preparing the data: rows become token ids, with labels where the loss counts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from fmstune.tuning.errors import DataError
from fmstune.tuning.labels import IGNORED, Labeller
from fmstune.tuning.mixture import drawn, repeated
from fmstune.tuning.reading.bad_rows import BadRows
from fmstune.tuning.reading.origins import Split
from fmstune.tuning.rows import Reader
from fmstune.tuning.streaming import stream
from fmstune.tuning.summary import DataSummary, SourceSummary, joined
from fmstune.tuning.tokenised import Integers, Tokenised, tokenise

if TYPE_CHECKING:
    from fmstune.config.data_schema import DataConfig, DataSource

__all__ = ["IGNORED", "DataSummary", "PreparedData", "prepare"]


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Data sets with the columns `input_ids` and `labels`. `bad` are the rows that were left out; `places`
    says where each training row is from, but for those of a stream."""

    train: datasets.Dataset | datasets.IterableDataset
    eval: datasets.Dataset | None
    summary: DataSummary
    bad: BadRows
    places: Sequence[str] = ()


def prepare(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    seed: int,
    skipped: Path | None = None,
) -> PreparedData:
    """Read, render and tokenise the data. Rows longer than `max_length` tokens are cut at their end.

    Of several sources with weights a mixture is made (see `mixture`); without weights they come together as
    they are. Bad rows are listed in the file `skipped`, where they are left out. Raises `DataError` that
    names the place of what is wrong.
    """
    labeller = Labeller(tokenizer, max_length, config.train_on == "all")
    bad = BadRows(config.skip_bad_rows, skipped)
    if config.streaming:
        readers = [_reader(source, "train", config, labeller, bad) for source in config.train]
        train, summary = stream(readers, labeller, seed, config.shuffle_buffer)
        places: list[str] = []
        held_out, seen = _eval_parts(config, labeller, bad), frozenset[int]()
    else:
        parts = _parts(config.train, "train", config, labeller, bad)
        held_out = [] if not config.eval else _eval_parts(config, labeller, bad)
        if config.eval_fraction and not config.eval:
            parts, held_out = _hold_out(parts, config.eval_fraction, seed)
        train, summary, places = _mixed(parts, max_length, seed)
        seen = frozenset(value for part in parts for value in part.hashes().tolist())
    if not held_out:
        return PreparedData(train, None, replace(summary, skipped=bad.count), bad, places)
    evaluation, of_eval = _together(held_out, max_length)
    summary = replace(
        summary,
        skipped=bad.count,
        eval_source=of_eval.source,
        eval_rows=of_eval.rows,
        eval_sha256=of_eval.sha256,
        eval_in_train=sum(value in seen for part in held_out for value in part.hashes().tolist()),
    )
    return PreparedData(train, evaluation, summary, bad, places)


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a source that are trained on, or evaluated on, by their numbers."""

    of: Tokenised
    numbers: Integers

    def kept(self) -> Integers:
        return self.numbers[self.of.index[self.numbers] >= 0]

    def hashes(self) -> Integers:
        return self.of.hashes[self.kept()]


def _parts(
    sources: Sequence[DataSource], split: Split, config: DataConfig, labeller: Labeller, bad: BadRows
) -> list[_Part]:
    found = [tokenise(_reader(source, split, config, labeller, bad), labeller) for source in sources]
    return [_Part(each, np.arange(len(each))) for each in found]


def _eval_parts(config: DataConfig, labeller: Labeller, bad: BadRows) -> list[_Part]:
    return _parts(config.eval, "eval", replace(config, streaming=False), labeller, bad)


def _reader(source: DataSource, split: Split, config: DataConfig, labeller: Labeller, bad: BadRows) -> Reader:
    most = source.max_rows or (config.max_rows if split == "train" else None)
    return Reader(source, split, config, bad, most, chat=bool(labeller.tokenizer.chat_template))


def _hold_out(parts: list[_Part], fraction: float, seed: int) -> tuple[list[_Part], list[_Part]]:
    total = sum(len(part.of) for part in parts)
    order = list(range(total))
    random.Random(seed).shuffle(order)
    count = max(1, round(total * fraction))
    if count >= total:
        raise DataError(
            f"{_name(parts)} has {total} rows: data.eval_fraction = {fraction} leaves none to train on."
        )
    held = np.zeros(total, dtype=bool)
    held[order[:count]] = True
    train, evaluation, start = [], [], 0
    for part in parts:
        own = held[start : start + len(part.of)]
        train.append(replace(part, numbers=part.numbers[~own]))
        evaluation.append(replace(part, numbers=part.numbers[own]))
        start += len(part.of)
    return [part for part in train if len(part.numbers)], [part for part in evaluation if len(part.numbers)]


def _mixed(
    parts: list[_Part], max_length: int | None, seed: int
) -> tuple[datasets.Dataset, DataSummary, list[str]]:
    """The sources as one data set, in the proportions of their weights, and the places of its rows."""
    together, summary = _together(parts, max_length)
    rows = [len(part.kept()) for part in parts]
    places = [part.of.places[number] for part in parts for number in part.kept()]
    weights = [part.of.reader.source.weight for part in parts]
    if len(parts) == 1 or 0 in rows:
        return together, summary, places
    given = [weight for weight in weights if weight is not None]
    wanted = repeated(rows, given) if len(given) == len(rows) else rows
    times = [number / count for number, count in zip(wanted, rows, strict=True)]
    summary = replace(
        summary,
        rows=sum(wanted),
        tokens=_weighted(parts, times, "length"),
        trained_tokens=_weighted(parts, times, "trained"),
        sources=tuple(
            SourceSummary(part.of.source, part.of.shape, count, often, weight, part.of.reader.origin.sha256())
            for part, count, often, weight in zip(parts, rows, times, weights, strict=True)
        ),
    )
    order = drawn(rows, wanted, seed)
    return together.select(order), summary, [places[number] for number in order]


def _weighted(parts: list[_Part], times: Sequence[float], what: str) -> int:
    each = (getattr(part.of, what)[part.kept()].sum() for part in parts)
    return round(sum(often * float(count) for often, count in zip(times, each, strict=True)))


def _together(parts: list[_Part], max_length: int | None) -> tuple[datasets.Dataset, DataSummary]:
    """The rows of all parts one after another. Raises `DataError` when none of them can be trained on."""
    numbers = [part.kept() for part in parts]
    kept = sum(map(len, numbers))
    read = sum(len(part.numbers) for part in parts)
    truncated = sum(int(part.of.cut[part.numbers].sum()) for part in parts)
    if not kept:
        raise DataError(
            f"{_name(parts)}: none of its {read} rows has a token to train on once they are cut to "
            f"training.max_length = {max_length} tokens; raise training.max_length."
        )
    hashes = np.concatenate([part.hashes() for part in parts])
    lengths = np.concatenate([part.of.length[own] for part, own in zip(parts, numbers, strict=True)])
    summary = DataSummary(
        source=_name(parts),
        shape=joined([part.of.shape for part in parts]),
        rows=kept,
        tokens=int(lengths.sum()),
        trained_tokens=sum(int(part.of.trained[own].sum()) for part, own in zip(parts, numbers, strict=True)),
        longest=int(lengths.max()),
        truncated=truncated,
        dropped=read - kept,
        sha256=parts[0].of.reader.origin.sha256() if len(parts) == 1 else None,
        duplicates=kept - len(np.unique(hashes)),
    )
    made = [part.of.dataset(own) for part, own in zip(parts, numbers, strict=True)]
    return made[0] if len(made) == 1 else datasets.concatenate_datasets(made), summary


def _name(parts: Sequence[_Part]) -> str:
    return joined([part.of.source for part in parts])
