"""The texts that a row is rendered to, and which of their characters are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fmstune.data.rendering.answer import Written
from fmstune.data.rows.masks import Range
from fmstune.data.rows.messages import Message
from fmstune.errors import DataError


@dataclass(frozen=True, slots=True)
class Span:
    """Characters that are trained, from `start` to `end`, with their weight in the loss."""

    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text to train on. `special`: whether the tokenizer still has to add its own special tokens (a
    template has already written them)."""

    text: str
    spans: tuple[Span, ...]
    special: bool
    masked: tuple[Range, ...] = ()
    """Characters in the spans that are not trained; a token that contains any of them is not, either."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """The result for a row: its texts, one or, for a split conversation, several; and remarks on what is not
    learnt or was changed, each a clause without the row."""

    parts: tuple[Rendered, ...]
    remarks: tuple[str, ...] = ()


def masked_in(text: str, within: Range, message: Message, place: str) -> list[Range]:
    """The characters of a message in the text, where it is `within`, that are not learnt. Raises `DataError`
    if the template writes its content in other words."""
    if "masked" not in message:
        return []
    content = message["content"]
    for shown in (content, content.strip()):  # many templates strip it
        at = text.rfind(shown, *within)
        if at >= 0:
            blanks = content.index(shown)
            return [
                (max(at, at + begin - blanks), min(at + len(shown), at + end - blanks))
                for begin, end in message["masked"]
            ]
    raise DataError(
        f"{place}: a part of an answer is not to be learnt, but the chat template writes the answer in other "
        "words; make the parts separate answers, or set another template (model.chat_template)."
    )


def merged(
    written: Sequence[Written], weights: Sequence[float], masks: Sequence[Sequence[Range]]
) -> Iterator[Rendered]:
    """The texts of answers, merged where one continues another."""
    text, spans, masked = "", [Span(0, 0)], list[Range]()
    for each, weight, mask in zip(written, weights, masks, strict=True):
        span = Span(each.start, each.end, weight)
        if not text:
            spans, masked = [span], [*mask]
        elif each.start >= spans[-1].end and each.text.startswith(text[: spans[-1].end]):
            spans.append(span)
            masked += mask
        else:
            yield until_last(text, spans, masked)
            spans, masked = [span], [*mask]
        text = each.text
    yield until_last(text, spans, masked)


def until_last(text: str, spans: Sequence[Span], masked: Sequence[Range]) -> Rendered:
    """The text up to the end of its last answer: nothing after it is learnt."""
    text = text[: spans[-1].end] if spans else text
    return Rendered(text, tuple(spans), special=False, masked=tuple(masked))
