"""Prepare the data: rows become token ids, with labels where the loss applies, or prompts with answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from fmstune.config.methods.known import DEFAULT, METHODS
from fmstune.data.files.source import Split
from fmstune.data.mixture import numbers_of_mixture, rows_of_sources
from fmstune.data.parts import Part, hold_out, order_of, order_within, source_of
from fmstune.data.rendering.answer import Writer
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.data.rows.unused import NotUsed
from fmstune.data.stream import stream
from fmstune.data.summary import DataSummary, SourceSummary, joined
from fmstune.data.tokens.preferences import AnswerEncoder
from fmstune.data.tokens.sft import Labeller
from fmstune.data.tokens.table import IGNORED, Encoder
from fmstune.data.tokens.tokenise import tokenise
from fmstune.errors import DataError
from fmstune.text import counted

if TYPE_CHECKING:
    from fmstune.config.schema.data import DataConfig, DataSource

__all__ = ["IGNORED", "DataSummary", "PreparedData", "prepare"]


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Data sets with the columns of their method: `input_ids` and `labels`, or a prompt and answers.

    `bad` are the rows that were left out; `places` are the locations of the training rows, except those of a
    stream.
    """

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
    *,
    method: str = DEFAULT,
    keep_end: bool = False,
    unweighted: str = "",
    divided_by: tuple[str, str] = ("", ""),
    as_given: bool = False,
) -> PreparedData:
    """Read, render and tokenise the data for a method. Rows longer than `max_length` tokens are truncated at
    their end, or with `keep_end` at their start; those of preferences later. `unweighted` is the setting
    under which the loss only supports the weights 0 and 1, if there is one. `as_given` keeps the order of the
    rows also for a method that would shuffle them here.

    Without sources to train on, those to evaluate on take their place. Several sources with weights become a
    mixture (see `mixture`); without weights they are concatenated. Bad rows that are left out are listed in
    the file `skipped`; rows of a stream are counted in its directory. Raises `DataError` with the location of
    the error.
    """
    encoder: Encoder
    of_eval: Encoder
    if not METHODS[method].compares:
        encoder, of_eval = (
            Labeller.of(config, tokenizer, max_length, keep_end, unweighted, setting)
            for setting in divided_by
        )
    else:
        writer = Writer(tokenizer, config.reasoning == "keep", config.strict_chat)
        encoder = of_eval = AnswerEncoder(writer, method, max_length, keep_end)
    shuffles = METHODS[method].in_order and not as_given
    bad = BadRows(config.skip_bad_rows, skipped, extends=config.streaming)
    train: datasets.Dataset | datasets.IterableDataset
    places: list[str]
    if not config.train:
        held_out, seen, places = _eval_parts(config, of_eval, bad, method), frozenset[int](), []
        train, summary = _concatenated(held_out, max_length)
        summary = replace(summary, eval_unused=_unused(held_out))
    elif config.streaming:
        readers = [_reader(source, "train", config, encoder, bad, method) for source in config.train]
        run = skipped.parent if skipped is not None else None
        train, summary = stream(readers, encoder, seed, config.shuffle_buffer, run)
        places = []
        held_out, seen = _eval_parts(config, of_eval, bad, method), frozenset[int]()
        summary = replace(summary, eval_unused=_unused(held_out))
    else:
        parts = read = _parts(config.train, "train", config, encoder, bad, method)
        held_out = [] if not config.eval else _eval_parts(config, of_eval, bad, method)
        unused, eval_unused = _unused(parts), _unused(held_out)
        if config.eval_fraction and not config.eval:
            parts, held_out = hold_out(parts, config.eval_fraction, seed)
            if len(set(divided_by)) > 1:
                # Rows to evaluate on are truncated in the same way.
                again = _parts(config.train, "train", config, of_eval, BadRows(config.skip_bad_rows), method)
                whole = {id(part.of): other.of for part, other in zip(read, again, strict=True)}
                held_out = [replace(part, of=whole[id(part.of)]) for part in held_out]
        train, summary, places = _mixed(parts, max_length, seed, shuffled=shuffles)
        seen = frozenset(value for part in parts for value in part.hashes().tolist())
        summary = replace(summary, unused=unused, eval_unused=eval_unused)
    if not held_out:
        return PreparedData(train, None, replace(summary, skipped=bad.count), bad, places)
    sets = _eval_sets(held_out, max_length)
    evaluation, held = _concatenated([part for own in sets.values() for part in own], max_length)
    rows = {name: sum(len(part.kept()) for part in own) for name, own in sets.items()}
    if shuffles:
        evaluation = evaluation.select(order_within(list(rows.values()), seed))
    summary = replace(
        summary,
        skipped=bad.count,
        eval_source=held.source,
        eval_rows=held.rows,
        eval_sets=tuple((name, count) for name, count in rows.items() if name is not None),
        eval_sha256=held.sha256,
        eval_truncated=held.truncated,
        eval_dropped=held.dropped,
        eval_same=held.same,
        eval_in_train=sum(value in seen for part in held_out for value in part.hashes().tolist()),
    )
    return PreparedData(train, evaluation, summary, bad, places)


def shuffled(data: PreparedData, seed: int) -> PreparedData:
    """The data with the training rows and their locations in another order; a stream is unchanged, as it is
    drawn from a buffer anyway."""
    if not isinstance(data.train, datasets.Dataset):
        return data
    order = order_of(len(data.train), seed)
    return replace(
        data, train=data.train.select(order), places=[data.places[number] for number in order if data.places]
    )


def _parts(
    sources: Sequence[DataSource],
    split: Split,
    config: DataConfig,
    encoder: Encoder,
    bad: BadRows,
    method: str,
) -> list[Part]:
    found = [tokenise(_reader(source, split, config, encoder, bad, method), encoder) for source in sources]
    return [Part(each, np.arange(len(each))) for each in found]


def _eval_parts(config: DataConfig, encoder: Encoder, bad: BadRows, method: str) -> list[Part]:
    return _parts(config.eval, "eval", replace(config, streaming=False), encoder, bad, method)


def _reader(
    source: DataSource, split: Split, config: DataConfig, encoder: Encoder, bad: BadRows, method: str
) -> Reader:
    most = source.max_rows or (config.max_rows if split == "train" else None)
    chat = bool(encoder.tokenizer.chat_template)
    return Reader(source, split, config, bad, most, chat, method)


def _eval_sets(parts: list[Part], max_length: int | None) -> dict[str | None, list[Part]]:
    """The parts of each named set, or of the only one, which has no name. Raises `DataError` if a set has no
    rows."""
    sets: dict[str | None, list[Part]] = {}
    for part in parts:
        sets.setdefault(part.of.reader.source.name, []).append(part)
    for own in sets.values():
        _require_rows(own, max_length)
    return sets


def _mixed(
    parts: list[Part], max_length: int | None, seed: int, *, shuffled: bool
) -> tuple[datasets.Dataset, DataSummary, list[str]]:
    """The sources as one data set, in the proportions of their weights, and the locations of its rows.

    `shuffled` is for a method whose trainer takes the rows in order, batch by batch: a batch should not have
    only good answers, or both answers to one prompt, more often than by chance.
    """
    together, summary = _concatenated(parts, max_length)
    rows = [len(part.kept()) for part in parts]
    places = [part.of.places[number] for part in parts for number in part.kept()]
    weights = [part.of.reader.source.weight for part in parts]
    given = [weight for weight in weights if weight is not None]
    if given and 0 in rows:
        raise DataError(
            f"{parts[rows.index(0)].of.source}: none of its rows is left to train on after truncation to "
            f"training.max_length = {max_length} tokens and removal of those to evaluate on; remove it "
            "from the mixture."
        )
    if len(parts) == 1:
        if not shuffled:
            return together, summary, places
        order = order_of(sum(rows), seed)
        return together.select(order), summary, [places[number] for number in order]
    wanted = rows_of_sources(rows, given) if len(given) == len(rows) else rows
    times = [number / count if count else 1.0 for number, count in zip(wanted, rows, strict=True)]
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
    order = numbers_of_mixture(rows, wanted, seed)
    return together.select(order), summary, [places[number] for number in order]


def _weighted(parts: list[Part], times: Sequence[float], what: str) -> int:
    each = (getattr(part.of, what)[part.kept()].sum() for part in parts)
    return round(sum(often * float(count) for often, count in zip(times, each, strict=True)))


def _concatenated(parts: list[Part], max_length: int | None) -> tuple[datasets.Dataset, DataSummary]:
    """The rows of all parts, concatenated. Raises `DataError` when none of them can be trained on."""
    _require_rows(parts, max_length)
    numbers = [part.kept() for part in parts]
    kept, same = sum(map(len, numbers)), _count(parts, "same")
    hashes = np.concatenate([part.hashes() for part in parts])
    summary = DataSummary(
        source=source_of(parts),
        shape=joined([part.of.shape for part in parts]),
        rows=kept,
        tokens=sum(int(part.of.length[part.kept()].sum()) for part in parts),
        trained_tokens=sum(int(part.of.trained[part.kept()].sum()) for part in parts),
        longest=max(int(part.of.longest[part.kept()].max(initial=0)) for part in parts),
        truncated=_count(parts, "cut"),
        dropped=_read(parts) - kept - same,
        same=same,
        reworded=_count(parts, "reworded"),
        sha256=_sha256(parts),
        duplicates=kept - len(np.unique(hashes)),
    )
    summary = _with_split(summary, parts)
    more = {name: any(getattr(part.of, name) for part in parts) for name in ("weighted", "margins")}
    made = [part.of.dataset(own, **more) for part, own in zip(parts, numbers, strict=True)]
    return made[0] if len(made) == 1 else datasets.concatenate_datasets(made), summary


def _require_rows(parts: Sequence[Part], max_length: int | None) -> None:
    """Raise `DataError` if no row of the parts can be trained on."""
    if any(len(part.kept()) for part in parts):
        return
    of_its = f"{source_of(parts)}: of its {counted(_read(parts), 'row')}"
    raise DataError(
        f"{of_its}, each has the same `chosen` and `rejected`."
        if _count(parts, "same") == _read(parts)
        else f"{of_its}, none has a token to train on once cut to training.max_length = {max_length} tokens; "
        "raise training.max_length."
    )


def _read(parts: Sequence[Part]) -> int:
    return sum(len(part.numbers) for part in parts)


def _sha256(parts: Sequence[Part]) -> str | None:
    """The SHA-256 of a source's files; for several, that of theirs; `None` if one is on the hub."""
    found = [part.of.reader.origin.sha256() for part in parts]
    if len(found) == 1 or None in found:
        return found[0] if len(found) == 1 else None
    return hashlib.sha256("".join(map(str, found)).encode()).hexdigest()


def _unused(parts: Sequence[Part]) -> tuple[NotUsed, ...]:
    return tuple(entry for part in parts for entry in part.of.reader.unused.entries())


def _with_split(summary: DataSummary, parts: Sequence[Part]) -> DataSummary:
    """The summary with the number of split conversations, the rows they became, and the repeated tokens:
    those of all but the longest row of each."""
    conversations = rows = again = 0
    for part in parts:
        own = part.numbers[part.of.parts[part.numbers] > 1]
        firsts = np.flatnonzero(part.of.part[own] == 1)
        if len(firsts):
            lengths = part.of.length[own]
            conversations += len(firsts)
            rows += len(own)
            again += int(lengths.sum() - np.maximum.reduceat(lengths, firsts).sum())
    return replace(summary, split=conversations, split_rows=rows, tokens_again=again)


def _count(parts: Sequence[Part], what: str) -> int:
    return sum(int(getattr(part.of, what)[part.numbers].sum()) for part in parts)
