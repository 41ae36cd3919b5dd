"""Tokenise texts by their words, each of which is tokenised only once.

A byte-level tokenizer splits a text at its added tokens, splits the rest into words by a pattern, and
tokenises each word separately. In the patterns of today's families (GPT-2, Llama 3, Qwen, o200k) no word
continues past a space that follows another character. So a text can be cut there, and the tokens of each
piece do not depend on the others. In a language with spaces, nearly all pieces of a text have occurred
before, and looking them up takes a quarter of the time of tokenising the text.

This applies only to tokenizers that `Words.of` knows, and rare cases are left to the tokenizer. Some texts of
each batch are tokenised both ways.
"""

from __future__ import annotations

import json
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import models
from transformers import PreTrainedTokenizerBase

_COMPARED = 2
"""The number of texts per batch that are also tokenised as a whole."""
_SHORT = 12
"""A shorter part between added tokens is one word, such as the newline between two messages."""
_KEPT, _KEPT_CHARACTERS = 1 << 17, 1 << 23
"""The most cached words and characters, at up to 8 bytes per character; beyond, the cache is cleared."""
_MOST_ADDED, _LONGEST_ADDED = 2048, 200
"""The most added tokens, and their most characters: Python's `re` searches for them more slowly than the
tokenizer does."""
_JUDGED = 1 << 20
"""The number of characters after which to check whether words recur."""
_NEW_SHARE = 0.25
"""The share of new words above which the tokenizer alone is faster: a single word takes it 5 µs."""

_ODD = re.compile("[\x1c-\x1f\u180e]")
"""Whitespace in Python's patterns or older Unicode versions, but not in those of tokenizers."""
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LIKE_LLAMA = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?%s+|\p{{N}}%s| ?[^\s%s\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN_PATTERNS = {
    _LIKE_LLAMA % (r"\p{L}", "{1,3}", r"\p{L}"),  # Llama 3, and cl100k
    _LIKE_LLAMA % (r"\p{L}", "", r"\p{L}"),  # Qwen 2 and 3
    _LIKE_LLAMA % (r"[\p{L}\p{M}]", "", r"\p{L}\p{M}"),  # Qwen 3.5
    _O200K % (f"{_SUFFIX}?", f"{_SUFFIX}?", r"\p{N}{1,3}"),  # gpt-oss
    _O200K % ("", "", r"\p{N}"),  # Mistral's Tekken
}


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Where a text may be cut. `words` finds the pieces; `between` matches between two of them, where neither
    side affects the tokens of the other."""

    words: re.Pattern[str]
    between: re.Pattern[str]


_GPT2 = _Cuts(
    # A single newline is a word; several form different words if the text ends after them.
    re.compile(r"\n(?=\S)|\s*\S+|\s+"),
    re.compile(r"(?<=\S)(?=\s)|(?<=\S\n)(?=\S)|(?<=\A\n)(?=\S)"),
)
_LLAMA = _Cuts(
    # Newlines belong to the preceding text, unless that ends in a letter or a digit.
    re.compile(r"\n(?=\S)|\s*\S+(?:(?<![A-Za-z0-9])[\r\n]\s*\S*)*|\s+"),
    re.compile(
        r"(?<=\S)(?=[^\S\r\n])|(?<=[A-Za-z0-9])(?=\s)|(?<=[A-Za-z0-9]\n)(?=\S)|(?<=\A\n)(?=\S)",
    ),
)


@dataclass
class Words:
    """The cached words of one tokenizer, with their tokens as 32-bit integers."""

    _tokenizer: Any  # `tokenizers.Tokenizer`
    _cuts: _Cuts
    _added: re.Pattern[str]
    _added_ids: dict[str, bytes]
    _normal: bool
    """Whether the tokenizer normalises texts (NFC)."""
    _known: dict[str, bytes] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)
    """Words that are not tokenised here; texts with them are not either."""
    _characters: int = 0
    """The number of characters in known and refused words."""
    _read: int = 0
    _new: int = 0
    """The number of characters read in new words."""
    _useless: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Words | None:
        """Create them for a tokenizer that is known to tokenise words separately; `None` for any other."""
        if not tokenizer.is_fast:
            return None
        backend = tokenizer.backend_tokenizer
        model = backend.model
        if not isinstance(model, models.BPE) or model.dropout:
            return None
        if model.continuing_subword_prefix or model.end_of_word_suffix:
            return None
        # transformers sets this in the backend at its first call.
        if backend.encode_special_tokens or getattr(tokenizer, "split_special_tokens", False):
            return None
        if _trims(_state(backend.post_processor)):
            return None
        normal, cuts = _state(backend.normalizer), _cuts_of(_state(backend.pre_tokenizer))
        if cuts is None or normal not in (None, {"type": "NFC"}):
            return None
        added = backend.get_added_tokens_decoder()
        if any(token.lstrip or token.rstrip or token.single_word for token in added.values()):
            return None
        # Tokens that are matched in the normalised text are found after the others.
        normalized = {token.normalized for token in added.values()}
        if (
            not 0 < len(added) <= _MOST_ADDED
            or len(normalized) > 1
            or (normal is not None and True in normalized)
        ):
            return None
        if any(len(token.content) > _LONGEST_ADDED for token in added.values()):
            return None
        ids = {token.content: array("i", [number]).tobytes() for number, token in added.items()}
        return cls(backend, cuts, re.compile(f"({_longest_of(ids)})"), ids, normal is not None)

    def tokens(self, texts: Sequence[str], bounds: Sequence[Sequence[int]]) -> list[list[bytes] | None]:
        """The tokens of each text as 32-bit integers, split at its `bounds`: those before the first bound,
        those up to the second, and so on. `None` for a text that needs the tokenizer, such as one in which a
        token may span a bound."""
        if self._useless:
            return [None] * len(texts)
        cut = [self._cut(text, of_text) for text, of_text in zip(texts, bounds, strict=True)]
        self._read += sum(map(len, texts))
        self._learn({word for pieces in cut for piece in pieces or () for word in piece})
        found = [None if pieces is None else self._looked_up(pieces) for pieces in cut]
        if not self._agrees(texts, found):
            self._useless = True
            return [None] * len(texts)
        return found

    def _cut(self, text: str, bounds: Sequence[int]) -> list[list[str]] | None:
        """Cut a text into words, split at the bounds."""
        words, between = self._cuts.words.findall, self._cuts.between.match
        pieces: list[list[str]] = [[]]
        waiting = iter((*bounds, len(text)))
        bound = next(waiting)
        begin = 0
        for number, part in enumerate(self._added.split(text)):
            is_token = number % 2
            end = begin + len(part)
            at = 0
            while bound < end:
                inside = bound - begin
                if inside > at and (is_token or between(part, inside) is None):
                    return None
                pieces[-1] += words(part[at:inside])
                pieces.append([])
                at, bound = inside, next(waiting)
            if is_token or len(part) < _SHORT:
                pieces[-1].append(part[at:])
            else:
                pieces[-1] += words(part[at:])
            begin = end
        return pieces + [[]] * (len(bounds) + 1 - len(pieces))  # bounds at the end of the text

    def _learn(self, words: set[str]) -> None:
        """Tokenise the words that are not yet known."""
        new = words - self._known.keys() - self._refused
        length = sum(map(len, new))
        many = len(self._known) + len(self._refused) + len(new) > _KEPT
        if many or self._characters + length > _KEPT_CHARACTERS or not self._known:
            self._known, self._refused, self._characters = dict(self._added_ids), set(), 0
            new = words - self._known.keys()
            length = sum(map(len, new))
        self._characters += length
        self._new += length
        if self._read > _JUDGED:
            self._useless = self._new > _NEW_SHARE * self._read
            self._read, self._new = self._read // 2, self._new // 2
        odd = {word for word in new if not self._is_plain(word)}
        self._refused |= odd
        taken = list(new - odd)
        self._known.update(zip(taken, self._tokenised(taken), strict=True))

    def _is_plain(self, word: str) -> bool:
        if word.isascii() or not self._normal or unicodedata.is_normalized("NFC", word):
            return _ODD.search(word) is None
        return False

    def _tokenised(self, texts: Sequence[str]) -> Iterator[bytes]:
        # Generation or evaluation with the same tokenizer may have set these.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield array("i", encoding.ids).tobytes()

    def _looked_up(self, pieces: list[list[str]]) -> list[bytes] | None:
        if self._refused and not all(map(self._refused.isdisjoint, pieces)):
            return None
        return [b"".join(map(self._known.__getitem__, piece)) for piece in pieces]

    def _agrees(self, texts: Sequence[str], found: Sequence[list[bytes] | None]) -> bool:
        """Whether the first texts have the same tokens when tokenised as a whole."""
        few = [(text, b"".join(each)) for text, each in zip(texts, found, strict=True) if each is not None]
        few = few[:_COMPARED]
        whole = self._tokenised([text for text, _ in few])
        return all(each == tokens for (_, tokens), each in zip(few, whole, strict=True))


def _longest_of(texts: Iterable[str]) -> str:
    """A pattern that matches the longest of these texts, with shared prefixes."""
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}

    def pattern(node: dict[str, Any]) -> str:
        found = [re.escape(character) + pattern(after) for character, after in node.items() if character]
        if not found:
            return ""
        if len(found) == 1 and "" not in node:
            return found[0]
        return f"(?:{'|'.join(found)}){'?' if '' in node else ''}"

    return pattern(tree)


def _trims(post_processor: Any) -> bool:
    """Whether token offsets omit leading spaces, so that the labels of a whole text differ from those of its
    words."""
    if post_processor is None:
        return False
    steps = post_processor.get("processors", [post_processor])
    return any(step.get("trim_offsets") for step in steps)


def _state(component: Any) -> Any:
    """The serialised form of a tokenizer component; one written in Python has none."""
    if component is None:
        return None
    try:
        return json.loads(component.__getstate__())
    except Exception:  # tokenizers raises bare ones
        return {"type": "custom"}


def _cuts_of(pre_tokenizer: Any) -> _Cuts | None:
    """Where to cut texts for a tokenizer with this pattern; `None` if it is unknown."""
    if pre_tokenizer is None:
        return None
    *before, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last.get("use_regex", True):
        return _GPT2 if all(step["type"] == "Digits" for step in before) else None
    if len(before) != 1 or before[0]["type"] != "Split":
        return None
    split = before[0]
    isolated = split["behavior"] == "Isolated" and not split["invert"]
    return _LLAMA if isolated and split["pattern"].get("Regex") in _KNOWN_PATTERNS else None
