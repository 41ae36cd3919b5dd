"""Mark the trained tokens of a text: those that contain any of its trained characters."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.data.rendering.rendered import Rendered
from fmstune.data.tokens.table import IGNORED

_IGNORED = array("i", [IGNORED]).tobytes()


@dataclass(frozen=True, slots=True)
class Marked:
    """The labels and weights of a text: the ids of tokens that overlap a trained span. `begins` has the index
    of the first token of each span that has one; `torn`: whether a token also covers text outside its span;
    `shared`: whether a token covers masked text and text that is not.
    """

    labels: list[int]
    weights: list[float] | None
    begins: tuple[int, ...]
    torn: bool
    shared: bool = False


def marked_by_offsets(entry: Rendered, ids: list[int], offsets: Sequence[tuple[int, int]]) -> Marked:
    """Mark the trained tokens of a text.

    A token that also covers the end of a prompt (such as the space before an answer) is trained: otherwise
    the start of the answer would never be learnt. The first token of a row is not, as no token precedes it.
    Special tokens that the tokenizer prepends cover no text, and are not trained; neither is a token with any
    masked character.
    """
    spans = entry.spans
    labels: list[int] = []
    weights: list[float] = []
    weighted = any(span.weight != 1 for span in spans)
    begins: list[int] = []
    span = written = 0
    begun, torn, shared = -1, False, False
    for token, (start, end) in zip(ids, offsets, strict=True):
        if start == end:
            # Some tokenizers omit whitespace from offsets: a whitespace token then starts where it ends.
            start = min(written, start)
        written = max(written, end)
        while span < len(spans) and start >= spans[span].end:
            span += 1
        if span < len(spans) and end > spans[span].start:
            if span != begun:
                begun = span
                begins.append(len(labels))
            torn = torn or start < spans[span].start or end > spans[span].end
            hidden = sum(max(0, min(end, last) - max(start, first)) for first, last in entry.masked)
            shared = shared or 0 < hidden < end - start
            labels.append(IGNORED if hidden else token)
        else:
            labels.append(IGNORED)
        if weighted:
            weights.append(0.0 if labels[-1] == IGNORED else spans[span].weight)
    labels = [IGNORED, *labels[1:]] if labels else []
    return Marked(labels, weights if weighted else None, tuple(begins), torn, shared)


def quickly_marked(entry: Rendered, ids: list[int], encoding: Any) -> Marked | None:
    """Like `marked_by_offsets`, using the tokenizer's own map from characters to tokens
    (`tokenizers.Encoding`): creating a Python object per offset takes a third of the whole preparation.
    `None` if the ends of a span are not clearly token boundaries, or a span has a weight or masked text."""
    if entry.masked:
        return None
    labels: list[int] = []
    begins: list[int] = []
    for span in entry.spans:
        if span.weight != 1 or span.end <= span.start:
            return None
        begin = _first(encoding, span.start)
        end = len(ids) if span.end == len(entry.text) else _first(encoding, span.end)
        if begin is None or end is None or not len(labels) <= begin < end:
            return None
        if end == len(ids) and not _ends_at(encoding, end - 1, span.end):
            return None
        labels += [IGNORED] * (begin - len(labels))
        labels += ids[begin:end]
        begins.append(begin)
    labels += [IGNORED] * (len(ids) - len(labels))
    if labels:
        labels[0] = IGNORED
    return Marked(labels, None, tuple(begins), torn=False)


def bounds_of(entry: Rendered) -> list[int]:
    """The starts and ends of the spans of a text, in order, if all tokens in them are trained with weight 1;
    empty if there are no spans, or if one has a weight or masked text, or is empty."""
    spans = entry.spans
    if entry.masked or any(span.weight != 1 or span.end <= span.start for span in spans):
        return []
    return [place for span in spans for place in (span.start, span.end)]


def marked_in_pieces(pieces: Sequence[bytes]) -> tuple[list[int], Marked] | None:
    """The ids and labels of a text, from the tokens before, in and after each span (as 32-bit integers).
    `None` if a span has no tokens."""
    labels: list[bytes] = []
    begins: list[int] = []
    count = 0
    for number, piece in enumerate(pieces):
        if number % 2:
            begins.append(count)
            if not piece:
                return None
        tokens = len(piece) // 4
        labels.append(piece if number % 2 else _IGNORED * tokens)
        count += tokens
    ids, marked = array("i", b"".join(pieces)).tolist(), array("i", b"".join(labels)).tolist()
    if marked:
        marked[0] = IGNORED
    return ids, Marked(marked, None, tuple(begins), torn=False)


def _first(encoding: Any, place: int) -> int | None:
    """The token that starts at this character, if the previous one ends there."""
    token: int | None = encoding.char_to_token(place)
    if token is None:
        return None
    chars = encoding.token_to_chars(token)
    if chars is None or chars[0] != place or (token and not _ends_at(encoding, token - 1, place)):
        return None
    return token if token or not place else None


def _ends_at(encoding: Any, token: int, place: int) -> bool:
    """Whether a token covers some text, and ends at this character."""
    chars = encoding.token_to_chars(token)
    return chars is not None and chars[0] < chars[1] == place
