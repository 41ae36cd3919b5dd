"""Which tokens of a text are trained: those that write something of its trained characters."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.data.rendering.render import Rendered
from fmstune.data.tokens.table import IGNORED

_IGNORED = array("i", [IGNORED]).tobytes()


@dataclass(frozen=True, slots=True)
class Marked:
    """The ids of the tokens that write something of a trained span, and their weights; of each span that is
    written the number of its first token (`begins`); and whether one of them writes something before or after
    its span as well (`torn`)."""

    labels: list[int]
    weights: list[float] | None
    begins: tuple[int, ...]
    torn: bool


def marked_by_offsets(entry: Rendered, ids: list[int], offsets: Sequence[tuple[int, int]]) -> Marked:
    """Which tokens of a text are trained.

    A token that writes the end of a prompt too (the space before an answer, say) is trained: without it
    the beginning of the answer would never be learnt. The first token of a row never is, as nothing comes
    before it. Special tokens that the tokenizer puts before a text write nothing, and are not trained.
    """
    spans = entry.spans
    labels: list[int] = []
    weights: list[float] = []
    weighted = any(span.weight != 1 for span in spans)
    begins: list[int] = []
    span = written = 0
    begun, torn = -1, False
    for token, (start, end) in zip(ids, offsets, strict=True):
        if start == end:
            # Some tokenizers leave blanks out of their offsets: a token of blanks then begins where it ends.
            start = min(written, start)
        written = max(written, end)
        while span < len(spans) and start >= spans[span].end:
            span += 1
        if span < len(spans) and end > spans[span].start:
            if span != begun:
                begun = span
                begins.append(len(labels))
            torn = torn or start < spans[span].start or end > spans[span].end
            labels.append(token)
        else:
            labels.append(IGNORED)
        if weighted:
            weights.append(0.0 if labels[-1] == IGNORED else spans[span].weight)
    labels = [IGNORED, *labels[1:]] if labels else []
    return Marked(labels, weights if weighted else None, tuple(begins), torn)


def quickly_marked(entry: Rendered, ids: list[int], encoding: Any) -> Marked | None:
    """As `marked_by_offsets`, by the tokenizer's own answer (`tokenizers.Encoding`) to which token a
    character is in: offsets of each token are Python objects, and take a third of the whole preparation.
    `None` where the ends of a span are not plainly those of tokens, or it has a weight."""
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
    """Where the spans of a text begin and end, one after another, if each token between is trained as it is;
    none where it has no spans, or one that has a weight or is empty."""
    spans = entry.spans
    if any(span.weight != 1 or span.end <= span.start for span in spans):
        return []
    return [place for span in spans for place in (span.start, span.end)]


def marked_in_pieces(pieces: Sequence[bytes]) -> tuple[list[int], Marked] | None:
    """The ids of a text, and which of them are trained, from the tokens before, in and after each span (as
    32-bit integers). `None` where nothing is written of a span."""
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
    """The token that begins at this character, where the one before it ends there."""
    token: int | None = encoding.char_to_token(place)
    if token is None:
        return None
    chars = encoding.token_to_chars(token)
    if chars is None or chars[0] != place or (token and not _ends_at(encoding, token - 1, place)):
        return None
    return token if token or not place else None


def _ends_at(encoding: Any, token: int, place: int) -> bool:
    """Whether a token writes something, and ends at this character."""
    chars = encoding.token_to_chars(token)
    return chars is not None and chars[0] < chars[1] == place
