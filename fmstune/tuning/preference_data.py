"""Preference data as TRL's trainers take it, which tokenise it themselves, and what became of it there."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow
from transformers import PreTrainedTokenizerBase

from fmstune.tuning.errors import DataError
from fmstune.tuning.preference import PAIRS, Preferences, read_preferences
from fmstune.tuning.reading.bad_rows import BadRows
from fmstune.tuning.reading.formats import without_empty_fields
from fmstune.tuning.reading.origins import Split
from fmstune.tuning.rows import Placed, Reader
from fmstune.tuning.summary import joined

if TYPE_CHECKING:
    from fmstune.config.data_schema import DataConfig, DataSource

_PLAIN = {"role", "content"}
_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids")


@dataclass(frozen=True, slots=True)
class PreferenceSummary:
    """What the data is. Lengths are in tokens, of prompts with each of their answers; `trained_tokens` are
    those of the answers. `truncated`, `dropped` and `skipped` count rows: cut to the greatest
    length, left out since they are too long to learn from, and left out as bad; `same` counts pairs whose
    answers do not differ."""

    source: str
    shape: str
    rows: int
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    truncated: int = 0
    dropped: int = 0
    same: int = 0
    skipped: int = 0
    sha256: str | None = None
    eval_source: str | None = None
    eval_rows: int = 0
    eval_sha256: str | None = None

    def as_params(self) -> dict[str, Any]:
        """The summary as parameters of the run."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def line(self) -> str:
        """The summary as a line for people."""
        parts = [f"{self.source} · {self.rows} rows ({self.shape}), {self.tokens:,} tokens"]
        if self.trained_tokens != self.tokens:
            parts[0] += f", {self.trained_tokens / max(1, self.tokens):.0%} trained"
        if self.truncated:
            parts.append(f"{self.truncated} rows cut")
        if self.dropped:
            parts.append(f"{self.dropped} rows left out (too long for training.max_length)")
        if self.same:
            parts.append(f"{self.same} rows left out (chosen and rejected are the same)")
        if self.skipped:
            parts.append(f"{self.skipped} bad rows skipped")
        if self.eval_rows:
            parts.append(f"eval {self.eval_rows} rows")
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """Data sets as TRL's trainers take them, and the rows that they were made of."""

    train: datasets.Dataset
    eval: datasets.Dataset | None
    rows: Preferences
    eval_rows: Preferences | None
    summary: PreferenceSummary
    bad: BadRows

    def refusal(self, tokenizer: PreTrainedTokenizerBase) -> DataError | None:
        """The first row that the model's chat template refuses; TRL's message does not tell its place."""
        for rows in (self.rows, self.eval_rows):
            if rows is None or not rows.chat:
                continue
            for row, place in zip(rows.rows, rows.places, strict=True):
                try:
                    for key in {"chosen", "rejected", "completion"} & row.keys():
                        tokenizer.apply_chat_template([*row["prompt"], *row[key]], tokenize=False)
                except Exception as error:  # a template may raise what it wants
                    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                    return DataError(
                        f"{place}: the model's chat template refuses this conversation: {reason}"
                    )
        return None


def prepare_preferences(
    config: DataConfig,
    method: str,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    skipped: Path | None = None,
) -> PreferenceData:
    """Read the rows for `method` and bring them into the form of its trainer.

    Bad rows are listed in the file `skipped`, where they are left out. Raises `DataError` that names
    the place of what is wrong.
    """
    bad = BadRows(config.skip_bad_rows, skipped)
    source = joined([each.path for each in config.train])
    rows, sha256 = _read(config.train, "train", method, config, bad)
    held_out: Preferences | None = None
    eval_source, eval_sha256 = None, None
    if config.eval:
        held_out, eval_sha256 = _read(config.eval, "eval", method, config, bad)
        eval_source = joined([each.path for each in config.eval])
    elif config.eval_fraction:
        rows, held_out = _hold_out(rows, source, config.eval_fraction, seed)
        eval_source = source
    _require_usable(tokenizer, rows, source)
    train = _dataset(rows, source, method, seed)
    summary = PreferenceSummary(
        source,
        f"{rows.kind}{' as messages' * rows.chat}",
        rows=len(train),
        same=rows.same,
        skipped=bad.count,
        sha256=sha256,
        eval_source=eval_source,
        eval_sha256=eval_sha256,
    )
    if held_out is None:
        return PreferenceData(train, None, rows, None, summary, bad)
    _require_usable(tokenizer, held_out, str(eval_source))
    evaluation = _dataset(held_out, str(eval_source), method, seed)
    return PreferenceData(train, evaluation, rows, held_out, summary, bad)


def with_lengths(
    summary: PreferenceSummary,
    train: datasets.Dataset,
    evaluation: datasets.Dataset | None,
    limit: int | None,
) -> PreferenceSummary:
    """The summary with the lengths in the trainer's tokenised data sets, whose rows are cut at `limit`.

    Raises `DataError` when no row is left to train on.
    """
    if not len(train):
        raise DataError(
            f"{summary.source}: none of its {summary.rows} rows fits with its answers into "
            f"training.max_length = {limit} tokens; raise it."
        )
    lengths = {name: list(map(len, train[name])) for name in _TOKENS if name in train.column_names}
    prompts = lengths.pop("prompt_ids", [0] * len(train))
    # Of each row the lengths of the prompt with each of its answers: two of a pair, else one.
    sums = [
        [prompt + answer for answer in of_row]
        for prompt, of_row in zip(prompts, zip(*lengths.values(), strict=True), strict=True)
    ]
    longest = max(map(max, sums))
    most = limit or longest
    tokens = [min(length, most) for of_row in sums for length in of_row]
    return replace(
        summary,
        rows=len(train),
        tokens=sum(tokens),
        trained_tokens=sum(tokens) - len(lengths) * sum(prompts),
        longest=min(longest, most),
        truncated=sum(max(of_row) > most for of_row in sums),
        dropped=summary.rows - len(train),
        eval_rows=len(evaluation) if evaluation is not None else 0,
    )


def _read(
    sources: Sequence[DataSource], split: Split, method: str, config: DataConfig, bad: BadRows
) -> tuple[Preferences, str | None]:
    """The rows of all sources, one after another, and the SHA-256 of the only one."""
    most = config.max_rows if split == "train" else None
    readers = [Reader(each, split, config, bad, each.max_rows or most) for each in sources]
    found = chain.from_iterable(map(_placed, readers))
    rows = read_preferences(found, joined([each.path for each in sources]), method, bad)
    return rows, readers[0].origin.sha256() if len(readers) == 1 else None


def _placed(reader: Reader) -> Iterator[Placed]:
    rows = islice(reader.raw(), reader.most)
    return _demo_pairs(rows) if reader.source.path == "demo" else rows


def _demo_pairs(found: Iterable[Placed]) -> Iterator[Placed]:
    """The demo's conversations as pairs: the answer, and its words in the wrong order."""
    for place, row in found:
        *prompt, answer = row["messages"]
        backwards = {**answer, "content": " ".join(reversed(answer["content"].split()))}
        yield place, {"prompt": prompt, "chosen": [answer], "rejected": [backwards]}


def _hold_out(rows: Preferences, source: str, fraction: float, seed: int) -> tuple[Preferences, Preferences]:
    order = list(range(len(rows.rows)))
    random.Random(seed).shuffle(order)
    count = max(1, round(len(order) * fraction))
    if count >= len(order):
        raise DataError(
            f"{source} has {len(order)} rows: data.eval_fraction = {fraction} leaves none to train on."
        )
    return _chosen(rows, sorted(order[count:])), _chosen(rows, sorted(order[:count]))


def _chosen(rows: Preferences, indices: list[int]) -> Preferences:
    return replace(rows, rows=[rows.rows[i] for i in indices], places=[rows.places[i] for i in indices])


def _dataset(rows: Preferences, source: str, method: str, seed: int) -> datasets.Dataset:
    entries: list[dict[str, Any]] = list(rows.rows)
    if method == "kto":
        if rows.kind == PAIRS:
            entries = list(chain.from_iterable(map(_single_answers, entries)))
        # Its trainer takes the rows in their order, batch by batch: neither good answers alone nor the two
        # answers to one prompt should share a batch more often than chance has it.
        random.Random(seed).shuffle(entries)
    columns = {key for entry in entries for key in entry}
    if "margin" in columns and not all("margin" in entry for entry in entries):
        raise DataError(f"{source}: some rows have a `margin`, others none; give it to all or to none.")
    try:
        made = datasets.Dataset.from_list([{key: entry.get(key) for key in columns} for entry in entries])
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{source}: its rows do not fit into one table: {reason}") from None
    # A table gives every message the fields that any has; chat templates would find them there.
    return made.with_transform(without_empty_fields) if _has_more_fields(entries) else made


def _single_answers(pair: Mapping[str, Any]) -> list[dict[str, Any]]:
    besides = {key: value for key, value in pair.items() if key not in ("chosen", "rejected")}
    return [besides | {"completion": pair[key], "label": key == "chosen"} for key in ("chosen", "rejected")]


def _has_more_fields(entries: list[dict[str, Any]]) -> bool:
    conversations = (value for entry in entries for value in entry.values() if isinstance(value, list))
    return any(set(message) - _PLAIN for conversation in conversations for message in conversation)


def _require_usable(tokenizer: PreTrainedTokenizerBase, rows: Preferences, source: str) -> None:
    if rows.chat and not tokenizer.chat_template:
        raise DataError(
            f"{source} holds chats, and the model has no chat template: give one as a Jinja file with "
            "model.chat_template, or data whose prompts and answers are texts."
        )
    if not tokenizer.eos_token:
        raise DataError(
            "the model's tokenizer names no token that ends a text (eos_token), which answers need to end "
            "with; name it in its tokenizer_config.json."
        )
