"""From rows to token ids, and labels where the loss counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from fmstune.config.methods.known import methods_for
from fmstune.config.methods.record import Form
from fmstune.data.rendering.answer import Writer
from fmstune.data.rendering.render import NO_WEIGHT, Rendered, Renderer
from fmstune.data.rows.messages import says_something
from fmstune.data.rows.reader import PREFERENCES, Placed, Reader, Row, Shape
from fmstune.data.rows.shapes import Recognised
from fmstune.data.tokens.marking import marked_by_offsets, quickly_marked
from fmstune.data.tokens.table import IGNORED, LOSS_WEIGHTS, TOKENS, TokenRow, batches
from fmstune.errors import DataError

if TYPE_CHECKING:
    from fmstune.config.schema.data import DataConfig

CUT_OFF = "answers are cut off: they do not begin within training.max_length"
DIVIDED = "rows are divided at training.max_length ({}): what follows is learnt without the words before it"
JOINED = (
    "rows are joined and divided at every training.max_length tokens ({}): most answers are learnt after "
    "other rows, some without their own beginning"
)
NO_TOKENS = "answers are not trained: the chat template writes nothing of them"
NO_FIRST = (
    "the beginning of an answer is not trained: it is one token with all of its prompt, and nothing comes "
    "before that (end the prompt with a line end)"
)
_BATCH = 512
_SCHEMA = pa.schema([("input_ids", TOKENS), ("labels", TOKENS)])

WEIGHED = "weights other than 0 and 1 are obeyed: the loss is weighed by them"
"""Said of a data set: a column `weight` may be one of kilograms."""


@dataclass(frozen=True)
class Labeller:
    """Tokenises rows and labels what the loss counts: the responses, or all tokens. Rows longer than
    `max_length` tokens are cut at their end, or with `keep_end` at their beginning; with `divided_by`, a
    setting, the trainer divides them later. Raises `DataError` that names the place of what is wrong."""

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
        """The one that a configuration asks for; `unweighted` as in `Renderer`."""
        writer = Writer(tokenizer, config.reasoning == "keep", config.strict_chat)
        renderer = Renderer(writer, config.train_on == "all", config.history, unweighted)
        return cls(tokenizer, max_length, renderer, keep_end, divided_by)

    def schema(self, recognised: Recognised) -> pa.Schema:
        """`input_ids` and `labels`, for rows of any shape."""
        return _SCHEMA

    def rows(self, reader: Reader, batch: int = _BATCH) -> Iterator[TokenRow]:
        """The rows of a source, labelled a batch at a time."""
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
            labelled = label(rendered, self.tokenizer, will_cut=will_cut) if rendered else []
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
                labels[0] = IGNORED  # nothing comes before the first token
            trained = len(labels) - labels.count(IGNORED)
            if not trained and not cut:
                reader.bad.take(row.place, DataError(f"{row.place}: this row has no token to train on."))
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
                reader.bad.take(place, error)
                continue
            for remark in rendering.remarks:
                reader.unused.add(remark, place)
            count = len(rendering.parts)
            found += [Part(place, each, number, count) for number, each in enumerate(rendering.parts, 1)]
        return found

    def _given(self, part: Sequence[Placed], reader: Reader) -> Iterator[Labelled]:
        """Rows that are tokens already, checked against the vocabulary."""
        vocabulary = max(len(self.tokenizer), self.tokenizer.vocab_size)
        for place, row in part:
            ids, labels, weight = row["input_ids"], row["labels"], row.get("weight", 1.0)
            wrong = [token for token in ids if not 0 <= token < vocabulary]
            wrong += [token for token in labels if not 0 <= token < vocabulary and token != IGNORED]
            if wrong:
                what = f"{place}: the token {wrong[0]} is not in the model's vocabulary of {vocabulary}"
                reader.bad.take(place, DataError(f"{what}; was this data made for another model?"))
                continue
            try:
                self.renderer.require_weights([weight], place)
            except DataError as error:
                reader.bad.take(place, error)
                continue
            if not weight:
                reader.unused.add(NO_WEIGHT, place)
                continue
            weights = None if weight == 1 else [weight] * len(ids)
            # Nothing comes before the first token.
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
    """Raises `DataError` for a row whose whole response is empty: its end would be all there is to learn. One
    of weight 0 is not learnt anyway."""
    if not row.get("weight", 1):
        return
    if shape == "text":
        empty, what = not row["text"].strip(), "`text`"
    elif shape == "prompt/completion":
        empty, what = not row["completion"].strip(), "the completion"
    else:
        messages = row["messages" if shape == "messages" else "completion"]
        answers = [message for message in messages if message["role"] == "assistant"]
        silent = not any(map(says_something, answers))
        empty = silent and any(message.get("weight", 1) for message in answers)
        what = "what the assistant says"
    if empty:
        raise DataError(
            f"{place}: {what} is empty; take the row out, or leave such rows out with --skip-bad-rows."
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A text of a row: which one of how many, where the row is a conversation that was split."""

    place: str
    text: Rendered
    part: int = 1
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text as tokens. `begins` has the number of the first token of each of its `answers`."""

    place: str
    ids: list[int]
    labels: list[int]
    begins: tuple[int, ...] = ()
    answers: int = 0
    part: int = 1
    parts: int = 1
    weights: list[float] | None = None
    """Of each token in the loss, where they are not all 1."""
    merged: bool = False
    """Whether its first token writes all of a prompt and the beginning of its answer."""

    def remarks(self, first: int, end: int) -> Iterator[str]:
        """What is to be said when it is cut to these tokens: each answer should have some to train on."""
        if any(not first <= begin < end for begin in self.begins):
            yield CUT_OFF
        if len(self.begins) < self.answers:
            yield NO_TOKENS
        if self.merged:
            yield NO_FIRST


def label(parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, *, will_cut: bool) -> list[Labelled]:
    """The ids and labels of rendered rows; `will_cut` says that they are cut after this."""
    encoded = tokenizer(
        [each.text.text for each in parts],
        add_special_tokens=parts[0].text.special,
        return_attention_mask=False,
        verbose=not will_cut,  # else it warns of rows too long for the model, which are cut after this
    )
    found = []
    for each, ids, encoding in zip(parts, encoded["input_ids"], encoded.encodings or (), strict=True):
        entry = each.text
        marked = None if entry.special else quickly_marked(entry, ids, encoding)
        if marked is None:
            offsets, added = list(encoding.offsets), encoding.special_tokens_mask
            if len(ids) > 1 and added[0] and ids[0] == ids[1] and offsets[1][1] < len(entry.text):
                del ids[0], offsets[0], added[0]  # the text begins with that token already
            if len(ids) > 1 and added[-1]:
                if ids[-1] == ids[-2]:  # the text ends with that token already
                    del ids[-1], offsets[-1]
                else:  # it says where to stop, as the end of the text does
                    offsets[-1] = (len(entry.text) - 1, len(entry.text))
            marked = marked_by_offsets(entry, ids, offsets)
            if marked.torn and not entry.special:
                ids, offsets = _in_pieces(entry, ids, offsets, tokenizer)
                marked = marked_by_offsets(entry, ids, offsets)
        count, where = len(entry.spans), (each.part, each.parts)
        merged = 0 in marked.begins and entry.spans[0].start > 0
        found.append(
            Labelled(each.place, ids, marked.labels, marked.begins, count, *where, marked.weights, merged)
        )
    return found


def _in_pieces(
    entry: Rendered, ids: list[int], offsets: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a conversation whose prompts and answers are tokens of their own, as the model will be
    given them: the line end that closes a prompt and one that begins its answer would else be one token."""
    ends = (place for span in entry.spans for place in (span.start, span.end))
    bounds = sorted({0, *ends, len(entry.text)})
    texts = [entry.text[start:end] for start, end in itertools.pairwise(bounds)]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    made = [token for piece in encoded["input_ids"] for token in piece]
    # A tokenizer that puts a blank before each text would write one into the middle.
    if tokenizer.decode(made) != tokenizer.decode(ids):
        return ids, offsets
    places = [
        (begin + start, begin + end)
        for begin, piece in zip(bounds, encoded["offset_mapping"], strict=False)
        for start, end in piece
    ]
    return made, places
