"""Turn rows into token ids, with labels for the tokens in the loss."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from fmstune.config.methods.known import methods_for
from fmstune.config.methods.record import Form
from fmstune.data.rendering.answer import Writer
from fmstune.data.rendering.render import NO_WEIGHT, Renderer
from fmstune.data.rows.messages import says_something
from fmstune.data.rows.reader import PREFERENCES, Placed, Reader, Row, Shape
from fmstune.data.rows.shapes import Recognised
from fmstune.data.tokens.labels import Labelled, Part, label
from fmstune.data.tokens.prompt_ends import PromptEnds
from fmstune.data.tokens.special import NOT_A_CHAT, lacks_template
from fmstune.data.tokens.table import IGNORED, LOSS_WEIGHTS, TOKENS, TokenRow, batches
from fmstune.data.tokens.words import Words
from fmstune.errors import DataError

if TYPE_CHECKING:
    from fmstune.config.schema.data import DataConfig

DIVIDED = "rows are split at training.max_length ({}); later parts are learnt without the text before them"
JOINED = (
    "rows are concatenated and split every training.max_length tokens ({}): most answers follow other rows, "
    "and some lose their start"
)
_NOT_A_CHAT = NOT_A_CHAT.format("completion", 'question = "prompt", answer = "completion"')
_BATCH = 512
_SCHEMA = pa.schema([("input_ids", TOKENS), ("labels", TOKENS)])

WEIGHED = "weights other than 0 and 1 scale the loss"
"""Reported for a data set, as a column `weight` may be in kilograms."""


@dataclass(frozen=True)
class Labeller:
    """Tokenise rows, and label the tokens in the loss: the responses, or all tokens. Rows longer than
    `max_length` tokens are cut at the end, or with `keep_end` at the start; with `divided_by`, a setting, the
    trainer splits them later. Raises `DataError` with the location of the error."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    renderer: Renderer
    keep_end: bool = False
    divided_by: str = ""

    @classmethod
    def of(
        cls,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        keep_end: bool = False,
        unweighted: str = "",
        divided_by: str = "",
    ) -> Labeller:
        """Create the one for a configuration; `unweighted` as in `Renderer`."""
        writer = Writer(tokenizer, config.reasoning == "keep", config.strict_chat)
        renderer = Renderer(writer, config.train_on == "all", config.history, unweighted)
        return cls(tokenizer, max_length, renderer, keep_end, divided_by)

    @functools.cached_property
    def words(self) -> Words | None:
        """A cache of tokenised words, if the tokenizer supports it."""
        return Words.of(self.tokenizer)

    @functools.cached_property
    def prompt_ends(self) -> PromptEnds:
        """What is known of the ends of prompts."""
        return PromptEnds(self.tokenizer)

    def schema(self, recognised: Recognised) -> pa.Schema:
        """`input_ids` and `labels`, for rows of any shape."""
        return _SCHEMA

    def rows(self, reader: Reader, batch: int = _BATCH) -> Iterator[TokenRow]:
        """Tokenise and label the rows of a source in batches."""
        for part in batches(reader, batch):
            yield from self._labelled(part, reader)

    def _labelled(self, part: Sequence[Placed], reader: Reader) -> Iterator[TokenRow]:
        assert reader.recognised is not None
        shape = reader.recognised.shape
        self._require_usable(reader.recognised, reader.source.path)
        if shape == "tokens":
            labelled = list(self._given(part, reader))
        else:
            rendered = self._rendered(part, shape, reader)
            will_cut = self.max_length is not None
            known = self.words, self.prompt_ends
            labelled = label(rendered, self.tokenizer, *known, will_cut=will_cut) if rendered else []
        most = None if self.divided_by else self.max_length
        if self.divided_by.endswith("wrapped"):
            reader.unused.note(JOINED.format(self.divided_by))
        remarked: set[tuple[str, str]] = set()
        for row in labelled:
            length = len(row.ids)
            limit = length if most is None else min(length, most)
            cut = length > limit
            first = length - limit if self.keep_end else 0
            ids, labels = row.ids[first : first + limit], row.labels[first : first + limit]
            if labels:
                labels[0] = IGNORED  # no token precedes the first one
            trained = len(labels) - labels.count(IGNORED)
            if not trained and not cut:
                reader.bad.reject(row.place, DataError(f"{row.place}: this row has no token to train on."))
                continue
            remarks = list(row.remarks(first, first + limit))
            if self.divided_by and self.max_length is not None and length > self.max_length:
                remarks.append(DIVIDED.format(self.divided_by))
            for remark in remarks:
                if (remark, row.place) not in remarked:  # once for all parts of a conversation
                    remarked.add((remark, row.place))
                    reader.unused.add(remark, row.place)
            columns: dict[str, Any] = {"input_ids": ids, "labels": labels}
            if row.weights is not None:
                columns[LOSS_WEIGHTS] = row.weights[first : first + limit]
                if (WEIGHED, row.place) not in remarked:
                    remarked.add((WEIGHED, row.place))
                    reader.unused.add(WEIGHED, row.place)
            longest = len(ids) if self.max_length is None else min(len(ids), self.max_length)
            yield TokenRow(
                row.place, columns, len(ids), longest, trained, cut, part=row.part, parts=row.parts
            )

    def _rendered(self, part: Sequence[Placed], shape: Shape, reader: Reader) -> list[Part]:
        found: list[Part] = []
        for place, row in part:
            try:
                if not self.renderer.all_tokens or shape == "text":
                    _require_response(row, shape, place)
                rendering = self.renderer.render(row, shape, place)
            except DataError as error:
                reader.bad.reject(place, error)
                continue
            for remark in rendering.remarks:
                reader.unused.add(remark, place)
            texts = shape == "prompt/completion" and not reader.mapped
            if texts and rendering.parts and lacks_template(self.tokenizer, row["prompt"]):
                reader.unused.add(_NOT_A_CHAT, place)
            count = len(rendering.parts)
            found += [Part(place, each, number, count) for number, each in enumerate(rendering.parts, 1)]
        return found

    def _given(self, part: Sequence[Placed], reader: Reader) -> Iterator[Labelled]:
        """Rows that are already tokenised, checked against the vocabulary."""
        vocabulary = max(len(self.tokenizer), self.tokenizer.vocab_size)
        for place, row in part:
            ids, labels, weight = row["input_ids"], row["labels"], row.get("weight", 1.0)
            wrong = [token for token in ids if not 0 <= token < vocabulary]
            wrong += [token for token in labels if not 0 <= token < vocabulary and token != IGNORED]
            if wrong:
                what = f"{place}: the token {wrong[0]} is not in the model's vocabulary of {vocabulary}"
                reader.bad.reject(place, DataError(f"{what}; was this data made for another model?"))
                continue
            try:
                self.renderer.require_weights([weight], place)
            except DataError as error:
                reader.bad.reject(place, error)
                continue
            if not weight:
                reader.unused.add(NO_WEIGHT, place)
                continue
            weights = None if weight == 1 else [weight] * len(ids)
            # No token precedes the first one.
            yield Labelled(place, list(ids), [IGNORED, *labels[1:]], weights=weights)

    def _require_usable(self, recognised: Recognised, source: str) -> None:
        shape = recognised.shape
        if shape in ("messages", "prompt/completion as messages") and not self.tokenizer.chat_template:
            raise DataError(
                f"{source} holds chats, and the model has no chat template: give one as a Jinja file with "
                "model.chat_template, or one by its name (model.chat_template = chatml), or data with "
                "`prompt` and `completion`, or `text`."
            )
        if shape in PREFERENCES:
            forms: tuple[Form, ...] = (
                ("labelled",) if shape == "labelled" else ("pair", "judged pair", "labelled")
            )
            raise DataError(
                f"{source} holds preferences, for --method {methods_for(*forms)}; to learn the answers as "
                f"they are, set data.columns = {{{recognised.as_examples}}}."
            )
        if not self.tokenizer.is_fast:
            raise DataError(
                "the model's tokenizer is of the slow kind, which does not say where a token comes from; "
                "convert it once with `AutoTokenizer.from_pretrained(MODEL, use_fast=True)"
                ".save_pretrained(...)`."
            )


def _require_response(row: Row, shape: Shape, place: str) -> None:
    """Raise `DataError` for a row whose whole response is empty: only its end could be learnt. A row of
    weight 0 is not learnt anyway."""
    if not row.get("weight", 1):
        return
    if shape == "text":
        empty, what = not row["text"].strip(), "`text`"
    elif shape == "segments":
        empty, what = not row["learnt"], "what is learnt of its `segments`"
    elif shape == "prompt/completion":
        empty, what = not row["completion"].strip(), "the completion"
    else:
        messages = row["messages" if shape == "messages" else "completion"]
        answers = [message for message in messages if message["role"] == "assistant"]
        silent = not any(map(says_something, answers))
        empty = silent and any(message.get("weight", 1) for message in answers)
        what = "what the assistant says"
    if empty:
        raise DataError(f"{place}: {what} is empty; remove the row, or skip such rows with --skip-bad-rows.")
