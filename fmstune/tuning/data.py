"""Preparing the data: rows become token ids, with labels where the loss counts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import datasets
from transformers import PreTrainedTokenizerBase

from fmstune.tuning.errors import DataError
from fmstune.tuning.masking import Rendered, render
from fmstune.tuning.rows import Rows, load_rows

if TYPE_CHECKING:
    from fmstune.config.schema import DataConfig

IGNORED = -100
"""The label of a token that the loss does not count (torch's own convention)."""

_BATCH = 512


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What the data is. Lengths are in tokens; `truncated` and `dropped` count rows: cut to the greatest
    length, and left out since nothing of them that is trained was left."""

    source: str
    shape: str
    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    truncated: int
    dropped: int
    sha256: str | None = None
    eval_source: str | None = None
    eval_rows: int = 0
    eval_sha256: str | None = None

    def as_params(self) -> dict[str, Any]:
        """The summary as parameters of the run."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def line(self) -> str:
        """The summary as a line for people."""
        share = self.trained_tokens / max(1, self.tokens)
        parts = [
            f"{self.source} · {self.rows} rows ({self.shape}), {self.tokens:,} tokens, {share:.0%} trained"
        ]
        if self.truncated:
            parts.append(f"{self.truncated} rows cut")
        if self.dropped:
            parts.append(f"{self.dropped} rows left out (nothing to train on was left of them)")
        if self.eval_rows:
            parts.append(f"eval {self.eval_rows} rows")
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Data sets with the columns `input_ids` and `labels`; `places` says where each training row is from."""

    train: datasets.Dataset
    eval: datasets.Dataset | None
    summary: DataSummary
    places: Sequence[str] = ()


def prepare(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | None, seed: int
) -> PreparedData:
    """Read, render and tokenise the data. Rows longer than `max_length` tokens are cut at their end.

    Raises `DataError` that names the place of what is wrong.
    """
    rows = load_rows(config.train, "train", config.max_rows)
    held_out: Rows | None = None
    if config.eval:
        held_out = load_rows(config.eval, "eval")
    elif config.eval_fraction:
        rows, held_out = _hold_out(rows, config.eval_fraction, seed)
    all_tokens = config.train_on == "all"
    train, summary, places = _tokenise(rows, tokenizer, max_length, all_tokens=all_tokens)
    if held_out is None:
        return PreparedData(train, None, summary, places)
    evaluation, of_eval, _ = _tokenise(held_out, tokenizer, max_length, all_tokens=all_tokens)
    summary = replace(
        summary, eval_source=held_out.source, eval_rows=of_eval.rows, eval_sha256=held_out.sha256
    )
    return PreparedData(train, evaluation, summary, places)


def _hold_out(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    order = list(range(len(rows.rows)))
    random.Random(seed).shuffle(order)
    count = max(1, round(len(order) * fraction))
    if count >= len(order):
        raise DataError(
            f"{rows.source} has {len(order)} rows: data.eval_fraction = {fraction} leaves none to train on."
        )
    return _chosen(rows, sorted(order[count:])), _chosen(rows, sorted(order[:count]))


def _chosen(rows: Rows, indices: Sequence[int]) -> Rows:
    return replace(rows, rows=[rows.rows[i] for i in indices], places=[rows.places[i] for i in indices])


def _tokenise(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, all_tokens: bool
) -> tuple[datasets.Dataset, DataSummary, list[str]]:
    _require_usable(tokenizer, rows)
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    places: list[str] = []
    truncated = dropped = 0
    for start in range(0, len(rows.rows), _BATCH):
        part = range(start, min(start + _BATCH, len(rows.rows)))
        rendered = [
            render(rows.rows[i], rows.shape, tokenizer, rows.place(i), all_tokens=all_tokens) for i in part
        ]
        labelled = _label(rendered, tokenizer, will_cut=max_length is not None)
        for i, (row_ids, row_labels) in zip(part, labelled, strict=True):
            truncated += max_length is not None and len(row_ids) > max_length
            if all(label == IGNORED for label in row_labels[:max_length]):
                dropped += 1
                continue
            ids.append(row_ids[:max_length])
            labels.append(row_labels[:max_length])
            places.append(rows.place(i))
    if not ids:
        cut = f" once they are cut to training.max_length = {max_length} tokens" if truncated else ""
        raise DataError(
            f"{rows.source}: none of its {len(rows.rows)} rows has a token to train on{cut}; "
            + ("raise training.max_length." if truncated else "are the responses empty?")
        )
    summary = DataSummary(
        source=rows.source,
        shape=rows.shape,
        rows=len(ids),
        tokens=sum(map(len, ids)),
        trained_tokens=sum(label != IGNORED for row in labels for label in row),
        longest=max(map(len, ids)),
        truncated=truncated,
        dropped=dropped,
        sha256=rows.sha256,
    )
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}), summary, places


def _label(
    rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase, *, will_cut: bool
) -> list[tuple[list[int], list[int]]]:
    encoded = tokenizer(
        [entry.text for entry in rendered],
        add_special_tokens=rendered[0].special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=not will_cut,  # else it warns of rows too long for the model, which are cut after this
    )
    found = []
    for entry, ids, offsets, added in zip(
        rendered,
        encoded["input_ids"],
        encoded["offset_mapping"],
        encoded["special_tokens_mask"],
        strict=True,
    ):
        if len(ids) > 1 and added[0] and ids[0] == ids[1] and offsets[1][1] < len(entry.text):
            del ids[0], offsets[0], added[0]  # the text begins with that token already
        if len(ids) > 1 and added[-1]:
            if ids[-1] == ids[-2]:  # the text ends with that token already
                del ids[-1], offsets[-1]
            else:  # it says where to stop, as the end of the text does
                offsets[-1] = (len(entry.text) - 1, len(entry.text))
        found.append((ids, _labels(entry, ids, offsets)))
    return found


def _labels(entry: Rendered, ids: list[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The ids of the tokens that write something of a trained span.

    A token that writes the end of a prompt too (the space before an answer, say) is trained: without it
    the beginning of the answer would never be learnt. The first token of a row never is, as nothing comes
    before it. Special tokens that the tokenizer puts before a text write nothing, and are not trained.
    """
    labels = []
    span = written = 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        if start == end:
            # Some tokenizers leave blanks out of their offsets: a token of blanks then begins where it ends.
            start = min(written, start)
        written = max(written, end)
        while span < len(entry.spans) and start >= entry.spans[span][1]:
            span += 1
        inside = span < len(entry.spans) and end > entry.spans[span][0]
        labels.append(token if inside else IGNORED)
    return [IGNORED, *labels[1:]] if labels else []


def _require_usable(tokenizer: PreTrainedTokenizerBase, rows: Rows) -> None:
    if rows.shape in ("messages", "prompt/completion as messages") and not tokenizer.chat_template:
        raise DataError(
            f"{rows.source} holds chats, and the model has no chat template: give one as a Jinja file with "
            "model.chat_template, or data with `prompt` and `completion`, or `text`."
        )
    if not tokenizer.is_fast:
        raise DataError(
            "the model's tokenizer is of the slow kind, which does not tell where a token comes from; "
            "convert it once with `AutoTokenizer.from_pretrained(MODEL, use_fast=True).save_pretrained(...)`."
        )
