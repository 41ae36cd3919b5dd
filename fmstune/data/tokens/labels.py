"""Tokenise rendered texts, with labels for the tokens in the loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fmstune.data.rendering.rendered import Rendered
from fmstune.data.tokens.marking import (
    Marked,
    bounds_of,
    marked_by_offsets,
    marked_in_pieces,
    quickly_marked,
)
from fmstune.data.tokens.prompt_ends import PromptEnds
from fmstune.data.tokens.special import repeated
from fmstune.data.tokens.words import Words

CUT_OFF = "answers are cut off: they do not begin within training.max_length"
NO_TOKENS = "answers are not trained: the chat template leaves them out"
NO_FIRST = (
    "the start of an answer is not trained: it shares a token with its whole prompt (end the prompt with a "
    "newline)"
)
REWORDED = (
    "a prompt ends with other tokens before its answer than in generation (end it with one newline, or start "
    "the answer with its blanks)"
)
SHARED = (
    "a token of a part that is learnt is not, as it also contains text of a part that is not (put a blank at "
    "the start of a part, not at its end)"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A text of a row, with its number and their count if the row is a conversation that was split."""

    place: str
    text: Rendered
    part: int = 1
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Labelled:
    """A tokenised text. `begins` has the index of the first token of each of its `answers`."""

    place: str
    ids: list[int]
    labels: list[int]
    begins: tuple[int, ...] = ()
    answers: int = 0
    part: int = 1
    parts: int = 1
    weights: list[float] | None = None
    """The loss weight of each token, unless all are 1."""
    merged: bool = False
    """Whether its first token covers all of a prompt and the start of its answer."""
    reworded: bool = False
    """Whether a prompt ends with other tokens than it does without its answer."""
    shared: bool = False
    """Whether a token is not learnt for the sake of a masked part of it."""

    def remarks(self, first: int, end: int) -> Iterator[str]:
        """The remarks if it is cut to these tokens: each answer should keep some to train on."""
        if any(not first <= begin < end for begin in self.begins):
            yield CUT_OFF
        if len(self.begins) < self.answers:
            yield NO_TOKENS
        if self.shared:
            yield SHARED
        if self.merged:
            yield NO_FIRST
        elif self.reworded:
            yield REWORDED


def label(
    parts: Sequence[Part],
    tokenizer: PreTrainedTokenizerBase,
    words: Words | None = None,
    ends: PromptEnds | None = None,
    *,
    will_cut: bool,
) -> list[Labelled]:
    """The ids and labels of rendered rows, from their `words` where the result is the same. `ends` keeps what
    is known of their prompts. `will_cut`: the caller cuts them afterwards."""
    quickly = _by_words(parts, words, None if will_cut else tokenizer.model_max_length)
    left = iter(
        _as_a_whole(
            [part for part, found in zip(parts, quickly, strict=True) if found is None],
            tokenizer,
            ends or PromptEnds(tokenizer),
            will_cut=will_cut,
        )
    )
    return [found or next(left) for found in quickly]


def _by_words(parts: Sequence[Part], words: Words | None, most: int | None) -> list[Labelled | None]:
    """Tokenise the parts that can be tokenised word by word; `None` for others, and for those of more than
    `most` tokens, as the tokenizer warns about them."""
    if words is None or parts[0].text.special:
        return [None] * len(parts)
    bounds = [bounds_of(part.text) for part in parts]
    pieces = words.tokens([part.text.text for part in parts], bounds)
    found: list[Labelled | None] = []
    for part, of_part, bounded in zip(parts, pieces, bounds, strict=True):
        made = marked_in_pieces(of_part) if of_part is not None and bounded else None
        if made is None or (most is not None and len(made[0]) > most):
            found.append(None)
        else:
            found.append(_labelled(part, *made))
    return found


def _as_a_whole(
    parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, ends: PromptEnds, *, will_cut: bool
) -> Iterator[Labelled]:
    if not parts:
        return
    encoded = tokenizer(
        [each.text.text for each in parts],
        add_special_tokens=parts[0].text.special,
        return_attention_mask=False,
        verbose=not will_cut,  # otherwise it warns about rows too long for the model, which are cut later
    )
    for each, ids, encoding in zip(parts, encoded["input_ids"], encoded.encodings or (), strict=True):
        entry = each.text
        changed = ends.change(entry)
        marked = None if entry.special or changed else quickly_marked(entry, ids, encoding)
        if marked is None:
            offsets, added = list(encoding.offsets), encoding.special_tokens_mask
            before, after = repeated(ids, added)
            if before and offsets[1][1] < len(entry.text):  # else the text is that token
                del ids[0], offsets[0]
            if after:
                del ids[-1], offsets[-1]
            elif len(ids) > 1 and added[-1]:  # it marks where to stop, like the end of the text
                offsets[-1] = (len(entry.text) - 1, len(entry.text))
            marked = marked_by_offsets(entry, ids, offsets)
            split = (marked.torn or changed) and not entry.special
            if split and (pieces := _in_pieces(entry, ids, tokenizer)):
                ids, changed = pieces[0], False
                marked = marked_by_offsets(entry, *pieces)
        # A token that the prompt shares with its answer is learnt, and shown as a part of that.
        yield _labelled(each, ids, marked, reworded=changed and not marked.torn)


def _labelled(part: Part, ids: list[int], marked: Marked, *, reworded: bool = False) -> Labelled:
    spans = part.text.spans
    merged = 0 in marked.begins and spans[0].start > 0
    return Labelled(
        part.place,
        ids,
        marked.labels,
        marked.begins,
        len(spans),
        part.part,
        part.parts,
        marked.weights,
        merged,
        reworded,
        marked.shared,
    )


def _in_pieces(
    entry: Rendered, ids: list[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Tokenise the prompts and answers of a conversation separately, as in generation. Otherwise the newline
    that ends a prompt and one that starts its answer would become one token. `None` if the text would be
    another one: a tokenizer that prepends a space to each text would insert one mid-text."""
    ends = (place for span in entry.spans for place in (span.start, span.end))
    bounds = sorted({0, *ends, len(entry.text)})
    texts = [entry.text[start:end] for start, end in itertools.pairwise(bounds)]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    made = [token for piece in encoded["input_ids"] for token in piece]
    if tokenizer.decode(made) != tokenizer.decode(ids):
        return None
    places = [
        (begin + start, begin + end)
        for begin, piece in zip(bounds, encoded["offset_mapping"], strict=False)
        for start, end in piece
    ]
    return made, places
