"""From a row to what the model sees: texts, and which of their characters are trained.

Each answer is learnt after exactly the text that the model will be given for it. If a template writes a
conversation's history differently from its end (without the reasoning, say), a conversation becomes several
texts: one for each run of answers that agree.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from fmstune.data.rendering.answer import LOST_REASONING, Writer, Written, in_history
from fmstune.data.rendering.hidden import HiddenWords
from fmstune.data.rendering.rendered import Rendered, Rendering, Span, masked_in, merged, until_last
from fmstune.data.rendering.words import missing_reasoning, missing_words, plainly_written
from fmstune.data.rows.masks import Range
from fmstune.data.rows.messages import Message, says_something
from fmstune.data.rows.reader import Row, Shape
from fmstune.errors import DataError
from fmstune.secrets.redaction import beginning

EMPTY_ANSWER = "an empty answer is not trained"
EMPTY_QUESTION = "an answer to an empty question is learnt"
NOT_AN_ANSWER = (
    "a message that is not an answer has a weight; it is not trained (data.train_on = all trains all)"
)
AFTER_LAST = "messages after the last answer are not used: nothing answers them"
ONLY_LAST = "answers before the last one are not trained: data.history = last"
NOT_FOUND = (
    "answers are not trained: the chat template renders them in other words in the history (data.history = "
    "template)"
)
NOT_WRITTEN = (
    "reasoning is not trained: the chat template leaves it out when it renders a whole conversation, even "
    "with data.reasoning = keep (data.train_on = responses with data.history = split trains it)"
)
NOT_READ = (
    "the reasoning of an answer with weight 0 is not used: the chat template leaves it out before later "
    "answers"
)
NO_WEIGHT = "a row is not trained: its weight, or that of all its answers, is 0"
NO_WORDS = "the chat template leaves out {}"
_NEEDED = ("tools", "calls of tools", "results of tools")
"""Without these, a conversation makes no sense."""
_SHOWN = 40


@dataclass(frozen=True)
class Renderer:
    """Render rows of any shape. `history` is one of `split`, `last` and `template` (see `DataConfig`).

    `unweighted` is the setting under which the loss only supports the weights 0 and 1, if there is one.
    """

    writer: Writer
    all_tokens: bool = False
    history: str = "split"
    unweighted: str = ""

    def render(self, row: Row, shape: Shape, place: str) -> Rendering:
        """The texts of a row and their trained characters. Raises `DataError` with the row's location."""
        writer, remarks = self.writer.for_row(row, place)
        renderer = self if writer is self.writer else replace(self, writer=writer)
        rendering = renderer._render(row, shape, place)
        if remarks:
            rendering = replace(rendering, remarks=(*rendering.remarks, *remarks))
        for part in rendering.parts:
            require_whole_characters(part.text, place)
        return rendering

    def _render(self, row: Row, shape: Shape, place: str) -> Rendering:
        weight = row.get("weight", 1.0)
        self.require_weights((weight, *_weights(row, shape)), place)
        everything = self.all_tokens or row.get("train_on_input", False)
        if not weight:
            return Rendering((), (NO_WEIGHT,))
        if shape == "text":
            text = with_eos(row["text"], self.writer.tokenizer)
            return Rendering((Rendered(text, (Span(0, len(text), weight),), special=True),))
        if shape == "segments":
            text = row["text"]
            learnt = [(0, len(text))] if everything else row["learnt"]
            spans = tuple(Span(begin, end, weight) for begin, end in learnt)
            return Rendering((Rendered(text, spans, special=False),))
        if shape == "prompt/completion":
            prompt, text = row["prompt"], with_eos(row["prompt"] + row["completion"], self.writer.tokenizer)
            span = Span(0 if everything else len(prompt), len(text), weight)
            return Rendering((Rendered(text, (span,), special=True),))
        if shape == "messages":
            messages = list(row["messages"])
        else:
            prompt = row["prompt"] if everything else _context(row["prompt"])
            messages = [*prompt, *row["completion"]]
        tools = row.get("tools") or None
        fitted = self.writer.fitted(messages, tools, place)
        self.writer.begin(fitted.messages, tools)
        self.writer.require_words(fitted.messages, tools, place)
        asked = any(message["role"] == "user" and not says_something(message) for message in messages)
        conversation = _Conversation(fitted.messages, tools, place, weight, asks_nothing=asked)
        made = self._everything(conversation) if everything else self._answers(conversation)
        texts = [part.text for part in made.parts]
        numbers = conversation.trained
        # Messages after the last learnt answer are not checked.
        until = fitted.messages[: numbers[-1] + 1] if numbers and not everything else fitted.messages
        lost: list[str] = []
        if texts and not plainly_written(until, tools, texts, self.writer.own_words):
            lost = list(self._lost(conversation, until, made, everything=everything))
        return Rendering(made.parts, tuple(dict.fromkeys([*fitted.remarks, *made.remarks, *lost])))

    def _lost(
        self, conversation: _Conversation, until: Sequence[Message], made: Rendering, *, everything: bool
    ) -> Iterator[str]:
        """What is not written of the messages up to the last learnt one. Raises `DataError` for what the
        conversation needs."""
        tools, place, numbers = conversation.tools, conversation.place, conversation.trained
        texts = [part.text for part in made.parts]
        hidden = HiddenWords(self.writer, until, tools, place, texts)
        for what, words in itertools.chain(missing_words(until, tools, texts), hidden.contents()):
            if what in _NEEDED:
                raise DataError(
                    f"{place}: the model's chat template leaves out {what} of this conversation "
                    f"({_short(words)}); set another one (model.chat_template), or remove the row."
                )
            yield NO_WORDS.format(what)
        if LOST_REASONING not in made.remarks:
            speakers = [at for at, message in enumerate(until) if message["role"] == "assistant"]
            learnt = speakers if everything else numbers[-1:] if self.history == "last" else numbers
            # For answers with their own text this is already known.
            whole = speakers if everything else learnt[:-1] if self.history == "template" else []
            before = list(conversation.given_before())
            if missing_reasoning((until[at] for at in learnt), texts) or hidden.reasoning(whole, whole=True):
                yield NOT_WRITTEN
            elif missing_reasoning((until[at] for at in before), texts) or hidden.reasoning(before):
                yield NOT_READ

    def require_weights(self, weights: Iterable[float], place: str) -> None:
        """Raise `DataError` for weights that the loss does not support."""
        for weight in weights:
            if self.unweighted and weight not in (0, 1):
                raise DataError(
                    f"{place}: it has the weight {weight:g}, but the loss of {self.unweighted} only supports "
                    "0 and 1; remove that setting, or use one of these."
                )

    def _everything(self, conversation: _Conversation) -> Rendering:
        """The whole conversation, each message with its weight."""
        if not any(map(conversation.weight_of, range(len(conversation.messages)))):
            return Rendering((), (NO_WEIGHT,))
        text = self.writer.whole(conversation.messages, conversation.tools, conversation.place)
        row = conversation.weight
        spans, masked, begin = [], list[Range](), 0
        for number in range(len(conversation.messages)):
            weight = conversation.weight_of(number)
            if weight == row and "masked" not in conversation.messages[number]:
                continue
            start, end = self._place_of(conversation, number, text)
            masked += masked_in(text, (start, end), conversation.messages[number], conversation.place)
            spans += [Span(begin, start, row), Span(start, end, weight)]
            begin = end
        spans.append(Span(begin, len(text), row))
        kept = tuple(span for span in spans if span.weight and span.end > span.start)
        return Rendering((Rendered(text, kept, special=False, masked=tuple(masked)),))

    def _place_of(self, conversation: _Conversation, number: int, text: str) -> tuple[int, int]:
        """The position of a message in the text of the whole conversation. Raises `DataError`."""
        messages, place = conversation.messages, conversation.place
        who = "an answer" if messages[number]["role"] == "assistant" else "a message"
        if messages[number]["role"] == "assistant":
            written = self._written(conversation, number)
            found, start, end = written.text[: written.end], written.start, written.end
        else:
            before, found = "", ""
            try:
                if number:
                    before = self.writer.whole(messages[:number], conversation.tools, place)
                found = self.writer.whole(messages[: number + 1], conversation.tools, place)
            except DataError:
                pass  # a template that needs more of a conversation; then the position is unknown
            # The text before it may be written differently at the end; its own text is the last.
            start = (
                len(before) if found.startswith(before) else found.rfind(messages[number]["content"].strip())
            )
            end = len(found)
        if start < 0 or not found or not text.startswith(found):
            raise DataError(
                f"{place}: {who} has its own weight, but cannot be separated from the rest of the "
                "conversation as this chat template writes it; use data.train_on = responses."
            )
        return start, end

    def _answers(self, conversation: _Conversation) -> Rendering:
        remarks = list(conversation.remarks())
        numbers = conversation.trained
        if not numbers:
            return Rendering((), (*remarks, NO_WEIGHT))
        if self.history == "last" and len(numbers) > 1:
            numbers = numbers[-1:]
            remarks.append(ONLY_LAST)
        written = [self._written(conversation, number) for number in numbers]
        for each in written:
            remarks += each.remarks
        weights = [conversation.weight_of(number) for number in numbers]
        messages = [conversation.messages[number] for number in numbers]
        if self.history == "template":
            found = list(in_history(written, messages))
            if None in found:
                remarks.append(NOT_FOUND)
            spans = [Span(*at, weight) for at, weight in zip(found, weights, strict=True) if at is not None]
            text = written[-1].text
            masked = [
                each
                for at, message in zip(found, messages, strict=True)
                if at is not None
                for each in masked_in(text, at, message, conversation.place)
            ]
            return Rendering((until_last(text, spans, masked),), tuple(remarks))
        masks = [
            masked_in(each.text, (each.start, each.end), message, conversation.place)
            for each, message in zip(written, messages, strict=True)
        ]
        return Rendering(tuple(merged(written, weights, masks)), tuple(remarks))

    def _written(self, conversation: _Conversation, number: int) -> Written:
        messages = conversation.messages
        return self.writer.answer(messages[:number], messages[number], conversation.tools, conversation.place)


@dataclass(frozen=True)
class _Conversation:
    """A conversation that fits the template, with the row's weights and settings for the loss."""

    messages: tuple[Message, ...]
    tools: Any
    place: str
    weight: float
    asks_nothing: bool = False
    """Whether a question of the row is empty."""

    def weight_of(self, number: int) -> float:
        return self.weight * float(self.messages[number].get("weight", 1.0))

    @functools.cached_property
    def trained(self) -> list[int]:
        """The numbers of the answers that are learnt."""
        return [
            number
            for number, message in enumerate(self.messages)
            if message["role"] == "assistant" and says_something(message) and self.weight_of(number)
        ]

    def given_before(self) -> Iterator[int]:
        """The numbers of the answers that are not learnt but precede learnt ones."""
        for number in range(max(self.trained, default=0)):
            message = self.messages[number]
            if message["role"] == "assistant" and not self.weight_of(number):
                yield number

    def remarks(self) -> Iterator[str]:
        for message in self.messages:
            if message["role"] == "assistant" and not says_something(message) and message.get("weight", 1):
                yield EMPTY_ANSWER
            if message["role"] != "assistant" and message.get("weight"):
                yield NOT_AN_ANSWER
        if self.asks_nothing and self.trained:
            yield EMPTY_QUESTION
        if any(message["role"] != "assistant" and says_something(message) for message in self.after_last()):
            yield AFTER_LAST

    def after_last(self) -> tuple[Message, ...]:
        """The messages after the last answer."""
        answers = [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]
        return self.messages[answers[-1] + 1 :] if answers else ()


def _weights(row: Row, shape: Shape) -> Iterator[float]:
    """The weights of a row's messages."""
    keys = {"messages": ("messages",), "prompt/completion as messages": ("prompt", "completion")}
    for key in keys.get(shape, ()):
        yield from (message["weight"] for message in row[key] if "weight" in message)


def _context(prompt: Sequence[Message]) -> list[Message]:
    """The messages of a prompt, whose answers are context and are not learnt, unless they have a weight."""
    return [{"weight": 0.0} | message if message["role"] == "assistant" else message for message in prompt]


def require_whole_characters(text: str, place: str) -> None:
    """Raise `DataError` for a text that was cut in the middle of a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: it contains an unpaired surrogate ({error.object[error.start]!a}), like texts "
            "that were cut in the middle of an emoji; remove it."
        ) from None


def with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with the token that ends it: a model can only learn to stop if it sees the token."""
    eos = tokenizer.eos_token
    return text if not eos or text.endswith(eos) else text + eos


def _short(words: str) -> str:
    return words if len(words) <= _SHOWN else f"{beginning(words, _SHOWN)}…"
