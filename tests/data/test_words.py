"""Tokens that are looked up word by word equal those of tokenizing the whole text."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from fmstune.data.rendering.rendered import Rendered, Span
from fmstune.data.tokens import words as module
from fmstune.data.tokens.labels import Part, label
from fmstune.data.tokens.words import Words
from tests.support.chat_templates import tokenizer_with

BY_REGEX = pre_tokenizers.ByteLevel(add_prefix_space=False)
AFTER_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), AFTER_SPLIT])


PRE_TOKENIZERS = [
    BY_REGEX,
    pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BY_REGEX]),
    *map(split, sorted(module._KNOWN_PATTERNS)),
]
SIGNS = "abZsſßé中'.,/!7²٣😀\u0301\u200b\ufeff\x00" + " \n" * 5 + "\r\t\x0b\x0c\x1c\x85\xa0\u180e\u2028\u3000"
texts = st.text(st.sampled_from(SIGNS), max_size=12)


@pytest.fixture
def using() -> Any:
    return copy.deepcopy(tokenizer_with("qwen2_5_vl"))


@pytest.mark.parametrize("number", range(len(PRE_TOKENIZERS)))
@given(text=texts)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_text_is_split_where_words_do_not_depend_on_their_context(number: int, text: str) -> None:
    made = PRE_TOKENIZERS[number]
    cuts = module._cuts_of(module._state(made))
    assert cuts is not None
    if module._ODD.search(text):
        return  # such text is left to the tokenizer

    def words(piece: str) -> list[str]:
        return [word for cut in cuts.words.findall(piece) for word, _ in made.pre_tokenize_str(cut)]

    whole = [word for word, _ in made.pre_tokenize_str(text)]
    assert words(text) == whole
    for place in range(1, len(text)):
        if cuts.between.match(text, place):
            assert words(text[:place]) + words(text[place:]) == whole


def parts(rows: list[list[str]]) -> list[Part]:
    """Strings made of pieces, every second one trained."""
    made = []
    for number, pieces in enumerate(rows):
        bounds = [0]
        for piece in pieces:
            bounds.append(bounds[-1] + len(piece))
        spans = zip(bounds[1::2], bounds[2::2], strict=False)
        made.append(
            Part(
                str(number),
                Rendered("".join(pieces), tuple(Span(*each) for each in spans), special=False),
            )
        )
    return made


pieces = st.lists(texts | st.sampled_from(["<|im_start|>assistant\n", "<|im_end|>", "<|im_"]), max_size=6)


@given(rows=st.lists(pieces, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_tokens_and_labels_equal_those_of_the_whole_text(rows: list[list[str]]) -> None:
    using = tokenizer_with("qwen2_5_vl")
    given = parts(rows)
    assert label(given, using, Words.of(using), will_cut=True) == label(given, using, will_cut=True)


CHAT = [
    "<|im_start|>user\nHow so?<|im_end|>\n<|im_start|>assistant\n",
    "So it is, é.\n\n  Yes<|im_end|>",
    "\n",
]


def test_a_chat_is_tokenized_word_by_word(using: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = label(parts([CHAT]), using, will_cut=True)
    words = Words.of(using)
    for name in ("padding", "truncation"):  # settings that other code leaves behind
        getattr(using.backend_tokenizer, f"enable_{name}")(
            **{"max_length": 2} if name == "truncation" else {}
        )
    assert label(parts([CHAT]), using, words, will_cut=True) == expected
    monkeypatch.setattr("fmstune.data.tokens.labels._as_a_whole", lambda *_, **__: iter(()))
    assert label(parts([CHAT]), using, words, will_cut=True) == expected
    assert words is not None
    assert words.tokens(["a <|im_end|> \x1c b", "a b"], [[], [2]]) == [None, None]


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
        {"pre_tokenizer": split(r"\w+ |\W")},
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.NFKC()},
    ],
)
def test_an_unknown_tokenizer_is_not_assumed_to_split_into_words(change: dict[str, Any], using: Any) -> None:
    assert Words.of(using) is not None
    for name, value in change.items():
        setattr(using.backend_tokenizer, name, value)
    assert Words.of(using) is None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_added_tokens_that_absorb_adjacent_space_are_left_to_the_tokenizer(flag: str, using: Any) -> None:
    using.add_tokens(AddedToken("<here>", **{"normalized": False, flag: True}))
    assert Words.of(using) is None


def test_many_added_tokens_and_offsets_without_spaces_are_left_to_the_tokenizer(using: Any) -> None:
    trimming = copy.deepcopy(using)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert Words.of(trimming) is None
    using.add_tokens([AddedToken(f"<audio_{number}>", normalized=False) for number in range(3000)])
    assert Words.of(using) is None


@given(st.sets(st.text("ab.|(", min_size=1, max_size=5), min_size=1, max_size=20), st.text("ab.|(x"))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_longest_of_several_added_tokens_is_found_first(added: set[str], text: str) -> None:
    longest_first = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    assert re.split(f"({module._longest_of(added)})", text) == re.split(f"({longest_first})", text)


@pytest.mark.parametrize("word", ["{}" + "x" * 2000, "cafe\u0301{}"])
def test_the_cache_of_words_is_bounded(word: str, using: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 300)
    monkeypatch.setattr(module, "_KEPT_CHARACTERS", 50_000)
    using.backend_tokenizer.normalizer = normalizers.NFC()
    words = Words.of(using)
    assert words is not None
    for number in range(80):
        given = parts([[f"{word.format(10 * number + at)} to of", " them"] for at in range(10)])
        assert label(given, using, words, will_cut=True) == label(given, using, will_cut=True)
        assert len(words._known) + len(words._refused) <= 300
        assert sum(map(len, (*words._known, *words._refused))) <= 60_000


def test_a_normalizer_leaves_words_in_normal_form_unchanged(using: Any) -> None:
    using.backend_tokenizer.normalizer = normalizers.NFC()
    words = Words.of(using)
    assert words is not None
    composed, apart = words.tokens(["caf\u00e9 x", "cafe\u0301 x"], [[], []])
    assert composed is not None
    assert apart is None


def test_words_that_the_tokenizer_splits_differently_are_detected(using: Any) -> None:
    words = Words.of(using)
    assert words is not None
    words._cuts = module._Cuts(re.compile(r"(?s)."), re.compile(""))
    given = parts([CHAT] * 3)
    assert label(given, using, words, will_cut=True) == label(given, using, will_cut=True)
    assert words._useless


def test_the_cache_is_cleared_when_it_is_full_and_disabled_without_hits(
    using: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 400)
    monkeypatch.setattr(module, "_JUDGED", 5000)
    words = Words.of(using)
    assert words is not None
    for number in range(40):
        given = parts([[f"{number} to {at} of", " them"] for at in range(20)])
        assert label(given, using, words, will_cut=True) == label(given, using, will_cut=True)
        assert len(words._known) <= 400
    assert not words._useless
    for number in range(40):
        given = parts([[f"{number}-to-{at} of-{number}-{at}"] for at in range(20)])
        assert label(given, using, words, will_cut=True) == label(given, using, will_cut=True)
    assert words._useless
