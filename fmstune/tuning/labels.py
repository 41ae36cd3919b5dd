"""From rows to token ids, and labels where the loss counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from fmstune.tuning.errors import DataError
from fmstune.tuning.masking import Rendered, render
from fmstune.tuning.reading.bad_rows import BadRows
from fmstune.tuning.reading.shapes import Recognised
from fmstune.tuning.rows import PREFERENCES, Placed, Reader, Row, Shape
from fmstune.tuning.tokenised import TOKENS, TokenRow, batches

IGNORED = -100
"""The label of a token that the loss does not count (torch's own convention)."""

_BATCH = 512
_SCHEMA = pa.schema([("input_ids", TOKENS), ("labels", TOKENS)])


@dataclass(frozen=True)
class Labeller:
    """Tokenises rows and labels what the loss counts: the responses, or all tokens. Rows longer than
    `max_length` tokens are cut at their end, or with `keep_end` at their beginning. Raises `DataError` that
    names the place of what is wrong."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    all_tokens: bool
    keep_end: bool = False

    def schema(self, recognised: Recognised) -> pa.Schema:
        """`input_ids` and `labels`, for rows of any shape."""
        return _SCHEMA

    def rows(self, reader: Reader, batch: int = _BATCH) -> Iterator[TokenRow]:
        """The rows of a source, labelled a batch at a time."""
        for part in batches(reader, batch):
            yield from self._labelled(part, reader)

    def _labelled(self, part: Sequence[Placed], reader: Reader) -> Iterator[TokenRow]:
        assert reader.recognised is not None
        shape, bad = reader.recognised.shape, reader.bad
        self._require_usable(reader.recognised, reader.source.path)
        if shape == "tokens":
            labelled = self._given(part, bad)
        else:
            places, rendered = self._rendered(part, shape, bad)
            will_cut = self.max_length is not None
            found = label(rendered, self.tokenizer, will_cut=will_cut) if rendered else []
            labelled = list(zip(places, found, strict=True))
        for place, (ids, labels) in labelled:
            limit = len(ids) if self.max_length is None else self.max_length
            cut = len(ids) > limit
            kept = slice(len(ids) - limit, None) if cut and self.keep_end else slice(limit)
            labels = labels[kept]
            if labels:
                labels[0] = IGNORED  # nothing comes before the first token
            trained = len(labels) - labels.count(IGNORED)
            if not trained and not cut:
                bad.take(place, DataError(f"{place}: this row has no token to train on."))
                continue
            ids = ids[kept]
            yield TokenRow(place, {"input_ids": ids, "labels": labels}, len(ids), len(ids), trained, cut)

    def _rendered(
        self, part: Sequence[Placed], shape: Shape, bad: BadRows
    ) -> tuple[list[str], list[Rendered]]:
        places, rendered = [], []
        for place, row in part:
            try:
                if not self.all_tokens or shape == "text":
                    _require_response(row, shape, place)
                rendered.append(render(row, shape, self.tokenizer, place, all_tokens=self.all_tokens))
            except DataError as error:
                bad.take(place, error)
            else:
                places.append(place)
        return places, rendered

    def _given(self, part: Sequence[Placed], bad: BadRows) -> list[tuple[str, tuple[list[int], list[int]]]]:
        """Rows that are tokens already, checked against the vocabulary."""
        vocabulary = max(len(self.tokenizer), self.tokenizer.vocab_size)
        found = []
        for place, row in part:
            ids, labels = row["input_ids"], row["labels"]
            wrong = [token for token in ids if not 0 <= token < vocabulary]
            wrong += [token for token in labels if not 0 <= token < vocabulary and token != IGNORED]
            if wrong:
                what = f"{place}: the token {wrong[0]} is not in the model's vocabulary of {vocabulary}"
                bad.take(place, DataError(f"{what}; was this data made for another model?"))
                continue
            found.append((place, (list(ids), [IGNORED, *labels[1:]])))  # nothing comes before the first token
        return found

    def _require_usable(self, recognised: Recognised, source: str) -> None:
        shape = recognised.shape
        if shape in ("messages", "prompt/completion as messages") and not self.tokenizer.chat_template:
            raise DataError(
                f"{source} holds chats, and the model has no chat template: give one as a Jinja file with "
                "model.chat_template, or one by its name (model.chat_template = chatml), or data with "
                "`prompt` and `completion`, or `text`."
            )
        if shape in PREFERENCES:
            learns = "kto" if shape == "labelled" else "dpo, kto or reward"
            raise DataError(
                f"{source} holds preferences, for --method {learns}; to learn the answers as they are, set "
                f"data.columns = {{{recognised.as_examples}}}."
            )
        if not self.tokenizer.is_fast:
            raise DataError(
                "the model's tokenizer is of the slow kind, which does not tell where a token comes from; "
                "convert it once with `AutoTokenizer.from_pretrained(MODEL, use_fast=True)"
                ".save_pretrained(...)`."
            )


def _require_response(row: Row, shape: Shape, place: str) -> None:
    """Raises `DataError` for a row whose whole response is empty: its end would be all there is to learn."""
    if shape == "text":
        empty, what = not row["text"].strip(), "`text`"
    elif shape == "prompt/completion":
        empty, what = not row["completion"].strip(), "the completion"
    else:
        messages = row["messages" if shape == "messages" else "completion"]
        answers = [message for message in messages if message["role"] == "assistant"]
        empty, what = not any(map(_says_something, answers)), "what the assistant says"
    if empty:
        raise DataError(
            f"{place}: {what} is empty; take the row out, or leave such rows out with --skip-bad-rows."
        )


def _says_something(message: Row) -> bool:
    said = (message.get(key) for key in ("content", "reasoning_content", "thinking"))
    return bool(message.get("tool_calls")) or any(isinstance(text, str) and text.strip() for text in said)


def label(
    rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase, *, will_cut: bool
) -> list[tuple[list[int], list[int]]]:
    """The ids and labels of rendered rows; `will_cut` says that they are cut after this."""
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
