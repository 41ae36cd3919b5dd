"""Tokenise rows of preferences: a prompt and its answers, good and bad.

The tokens equal those of TRL's own trainers (tests/data/test_answers.py). They are created here so that
preferences are prepared like all other data: with the location of a row that a chat template rejects, in
mixtures, streamed, cached for the next run, and with the lengths that the memory estimate needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from fmstune.config.methods.known import METHODS
from fmstune.config.methods.record import Form
from fmstune.data.rendering.answer import LOST_REASONING, Writer
from fmstune.data.rendering.hidden import HiddenWords
from fmstune.data.rendering.render import NO_WORDS, require_whole_characters, with_eos
from fmstune.data.rendering.words import missing_reasoning, missing_words
from fmstune.data.rows.messages import Message, says_something
from fmstune.data.rows.reader import Placed, Reader, Row
from fmstune.data.rows.shapes import Recognised
from fmstune.data.tokens.special import NOT_A_CHAT, lacks_template, texts_as_ids
from fmstune.data.tokens.table import TOKENS, TokenRow, batches
from fmstune.errors import DataError

ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")
"""Columns of answers; each continues the column `prompt_ids`, if there is one."""

_NO_PROMPT = (
    "{}: this chat template's rendering of an answer of several messages does not continue its prompt; put "
    "all but its last message into `prompt`, or give another template (model.chat_template)."
)
_LOST_REASONING = (
    "reasoning is not trained: the chat template leaves it out of an answer of several messages, and of a "
    "conversation with one label or score"
)
OTHERS_LEARNT = (
    "messages of a user or a tool between those of an answer are learnt as a part of it; put all but the "
    "last message into `prompt` to learn that alone"
)
NO_TOKENS = "an answer has no tokens: the chat template leaves it out"
EMPTY_BAD = "a bad answer is empty: only its end is learnt"
_NOT_A_CHAT = {
    "chosen": NOT_A_CHAT.format("chosen", 'question = "prompt"'),
    "completion": NOT_A_CHAT.format(
        "completion", 'question = "prompt", answer = "completion", label = "label"'
    ),
}
_BATCH = 512


@dataclass(frozen=True, slots=True)
class _Example:
    """The texts of one row of the table: a prompt, and the whole text with each of its answers."""

    place: str
    prompt: str
    wholes: tuple[str, ...]
    extras: dict[str, Any]


@dataclass(frozen=True)
class AnswerEncoder:
    """Tokenise prompts and answers for a preference method.

    Sequences are not cut here. TRL does this in its collator: at the end, or with `keep_end` at the start.
    Rows with nothing left to learn count as not trained.
    """

    writer: Writer
    method: str
    max_length: int | None
    keep_end: bool = False

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.writer.tokenizer

    @property
    def form(self) -> Form:
        """The form of rows that the trainer takes."""
        return METHODS[self.method].form

    def schema(self, recognised: Recognised) -> pa.Schema:
        """The columns that TRL's trainer for the method takes."""
        if self.form == "judged pair":
            margin = [("margin", pa.float32())] if recognised.shape == "preference with margin" else []
            return pa.schema([("chosen_ids", TOKENS), ("rejected_ids", TOKENS), *margin])
        if self.form == "labelled":
            return pa.schema([("prompt_ids", TOKENS), ("completion_ids", TOKENS), ("label", pa.bool_())])
        return pa.schema([("prompt_ids", TOKENS), ("chosen_ids", TOKENS), ("rejected_ids", TOKENS)])

    def rows(self, reader: Reader, batch: int = _BATCH) -> Iterator[TokenRow]:
        """Tokenise the rows of a source in batches; for a method with labels, a pair becomes two rows."""
        for part in batches(reader, batch):
            self._require_usable(part[0][1], reader.source.path)
            yield from self._encoded(part, reader)

    def _encoded(self, part: Sequence[Placed], reader: Reader) -> Iterator[TokenRow]:
        chat = _is_chat(part[0][1])
        found: list[_Example | TokenRow] = []
        for place, row in part:
            if "chosen" in row and row["chosen"] == row["rejected"]:
                found.append(_same(place))
                continue
            try:
                found += self._examples(place, row, reader)
            except DataError as error:  # the chat template rejects it
                reader.bad.reject(place, error)
        texts = [t for each in found if isinstance(each, _Example) for t in (each.prompt, *each.wholes)]
        ids = iter(texts_as_ids(self.tokenizer, texts, special=not chat) if texts else ())
        for each in found:
            if isinstance(each, TokenRow):
                yield each
                continue
            made = self._row(each, next(ids), [next(ids) for _ in each.wholes])
            if any(made.columns.get(name) == [] for name in ANSWERS):
                reader.unused.add(NO_TOKENS, each.place)
            yield made

    def _examples(self, place: str, row: Row, reader: Reader) -> list[_Example | TokenRow]:
        extras = {key: row[key] for key in ("label", "margin") if key in row}
        answers = [row[key] for key in ("chosen", "rejected", "completion") if key in row]
        if not all(map(_says, answers)):
            good = "chosen" if "chosen" in row else "completion"
            if not _says(row[good]) and row.get("label", True):
                raise DataError(
                    f"{place}: `{good}` is empty, but it is the better answer; remove the row, or skip "
                    "such rows with --skip-bad-rows."
                )
            reader.unused.add(EMPTY_BAD, place)
        if _is_chat(row):
            prompt, wholes = self._chat(place, row, answers, reader)
        else:
            prompt = row["prompt"]
            chosen = reader.mapped or reader.source.path == "demo"
            if not chosen and lacks_template(self.tokenizer, prompt):
                reader.unused.add(_NOT_A_CHAT["completion" if "completion" in row else "chosen"], place)
            wholes = [prompt + with_eos(answer, self.tokenizer) for answer in answers]
        if "chosen" in row and wholes[0] == wholes[1]:  # they differ only in parts that the template omits
            return [_same(place)]
        if self.form == "judged pair":
            prompt = ""
        if "chosen" in row and self.form == "labelled":
            labels = (True, False)
            return [
                _Example(place, prompt, (whole,), {"label": label})
                for whole, label in zip(wholes, labels, strict=True)
            ]
        return [_Example(place, prompt, tuple(wholes), extras)]

    def _chat(self, place: str, row: Row, answers: Sequence[Any], reader: Reader) -> tuple[str, list[str]]:
        """Render a prompt that is open for an answer, and the whole text with each answer."""
        tools = row.get("tools")
        writer, said = self.writer.for_row(row, place)
        prompt = ""
        wholes: list[str] = []
        remarks = list(said)
        for answer in answers:
            fitted = writer.fitted([*row["prompt"], *answer], tools, place)
            writer.require_words(fitted.messages, tools, place)
            if self.form == "judged pair":  # whole conversations are judged
                text = writer.whole(fitted.messages, tools, place)
            else:
                *earlier, last = fitted.messages
                written = writer.answer(earlier, last, tools, place)
                own = len(answer) - 1  # messages of the answer before its last one
                prompt, text = written.prompt, written.text
                if any(message["role"] != "assistant" for message in answer):
                    remarks.append(OTHERS_LEARNT)
                if own:
                    asked = earlier[: len(earlier) - own]
                    prompt = writer.whole(asked, tools, place, prompt=True)
                if not text.startswith(prompt):
                    raise DataError(_NO_PROMPT.format(place))
                remarks += written.remarks
            require_whole_characters(text, place)
            hidden = HiddenWords(writer, fitted.messages, tools, place, [text])
            missing = itertools.chain(missing_words(fitted.messages, tools, [text]), hidden.contents())
            remarks += [*fitted.remarks, *(NO_WORDS.format(what) for what, _ in missing)]
            count = len(fitted.messages)
            own_answers = [
                at for at in range(count - len(answer), count) if fitted.messages[at]["role"] == "assistant"
            ]
            # For the last one, if it was rendered as an answer, this is already known.
            doubted = own_answers if self.form == "judged pair" else own_answers[:-1]
            if LOST_REASONING not in remarks and (
                missing_reasoning((fitted.messages[at] for at in own_answers), [text])
                or hidden.reasoning(doubted, whole=True)
            ):
                remarks.append(_LOST_REASONING)
            wholes.append(text)
        for remark in dict.fromkeys(remarks):
            reader.unused.add(remark, place)
        return prompt, wholes

    def _row(self, example: _Example, prompt: list[int], wholes: list[list[int]]) -> TokenRow:
        if self.form == "judged pair":
            prompt = []
        if len(wholes) > 1 and wholes[0] == wholes[1]:  # different texts may have the same tokens
            return _same(example.place)
        # An answer starts where it diverges from the prompt alone, which may be before the prompt's end.
        shared = min((_shared(prompt, whole) for whole in wholes), default=0)
        columns: dict[str, Any] = {} if self.form == "judged pair" else {"prompt_ids": prompt[:shared]}
        names = ANSWERS[2:] if self.form == "labelled" else ANSWERS[:2]
        columns |= {name: whole[shared:] for name, whole in zip(names, wholes, strict=True)}
        lengths = [len(whole) for whole in wholes]
        limit = self.max_length if self.max_length is not None else max(lengths)
        cut = max(lengths) > limit
        if self.form == "judged pair":
            trained = 0 if cut else sum(lengths)
        elif cut and len(wholes) > 1 and len({tuple(self._kept(whole, limit)) for whole in wholes}) == 1:
            trained = 0  # what remains of them does not differ
        elif self.keep_end:
            trained = sum(min(length - shared, limit) for length in lengths)
        else:
            trained = sum(max(0, min(length, limit) - shared) for length in lengths) if shared < limit else 0
        return TokenRow(
            example.place,
            columns | example.extras,
            length=sum(min(length, limit) for length in lengths),
            longest=min(max(lengths), limit),
            trained=trained,
            cut=cut and trained > 0,
            reworded=shared < len(prompt),
        )

    def _kept(self, whole: list[int], limit: int) -> list[int]:
        return whole[-limit:] if self.keep_end else whole[:limit]

    def _require_usable(self, row: Row, source: str) -> None:
        if _is_chat(row) and not self.tokenizer.chat_template:
            raise DataError(
                f"{source} holds chats, and the model has no chat template: give one as a Jinja file with "
                "model.chat_template, or one by its name (model.chat_template = chatml), or data whose "
                "prompts and answers are texts."
            )
        if not self.tokenizer.eos_token:
            raise DataError(
                "the model's tokenizer names no token that ends a text (eos_token), which answers need to "
                "end with; name it in its tokenizer_config.json."
            )


def _says(answer: str | Sequence[Message]) -> bool:
    """Whether an answer has any content besides its end."""
    if isinstance(answer, str):
        return bool(answer.strip())
    return any(says_something(message) for message in answer if message["role"] == "assistant")


def _same(place: str) -> TokenRow:
    """A pair whose answers do not differ."""
    return TokenRow(place, {}, 0, 0, 0, False, same=True)


def _is_chat(row: Row) -> bool:
    return not isinstance(row["prompt"], str)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common prefix of two sequences."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
