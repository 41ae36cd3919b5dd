"""After rendering a conversation once, the rendering of each turn alone is known exactly, or not at all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.data.rendering import turns
from fmstune.data.rendering.rendered import Rendered, Span
from fmstune.data.rendering.turns import Turns
from fmstune.data.tokens.marking import marked_by_offsets, quickly_marked
from tests.support.chat_templates import TEMPLATES, tokenizer_with
from tests.support.conversations import ALTERNATING, PARTS, conversations

BY_MESSAGE = {"gemma", "llama3", "lfm2", "phi3_5", "qwen2_5_vl"}
"""Templates that render one message after another, like those of SmolLM2 and ChatML."""
LOOP = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}[assistant] {% endif %}"
LOOKS_AHEAD = {
    "the last message": LOOP.replace("{% endfor", "{% if loop.last %}!{% endif %}{% endfor") + PROMPT,
    "the next message": LOOP.replace("{% endfor", "{% if loop.nextitem %}~{% endif %}{% endfor") + PROMPT,
    "how many there are": "{{ messages | length }}" + LOOP + PROMPT,
    "how many, in the loop": LOOP.replace("{% endfor", "{{ loop.revindex }}{% endfor") + PROMPT,
    "the last by its number": "{{ messages[-1].role }}" + LOOP + PROMPT,
    "all in another loop": "{% for m in messages %}{{ m.role[0] }}{% endfor %}" + LOOP + PROMPT,
    "all in a filter": "{{ messages | map(attribute='role') | join }}" + LOOP + PROMPT,
    "all backwards": LOOP.replace("in messages", "in messages[::-1]") + PROMPT,
    "a state behind the loop": "{% set n = namespace(x='') %}"
    + LOOP.replace("{% endfor", "{% set n.x = message.content %}{% endfor")
    + "{% if add_generation_prompt %}{{ n.x }}{% endif %}",
    "the end behind the loop": LOOP + "{% if messages[-1].role == 'user' %}[assistant] {% endif %}",
    "the prompt in the loop": "{% for message in messages %}{{ message.content }}"
    "{% if add_generation_prompt %}?{% endif %}{% endfor %}",
    "every second one alone": LOOP.replace("{% for", "{% for").replace(
        "[{{", "{% if loop.index0 % 2 %}{% continue %}{% endif %}[{{"
    )
    + PROMPT,
}


def plain(messages: list[dict[str, Any]], parts: bool) -> list[dict[str, Any]]:
    """The messages with only role and content."""
    said = [{"role": m["role"], "content": m["content"] or ""} for m in messages]
    as_parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in said]
    return as_parts if parts else said


def agreeing(using: Any, messages: list[dict[str, Any]], known: Turns) -> int:
    """The number of known turns. Each is compared with what the tokenizer renders for it."""
    known.begin(messages, messages)
    found = 0
    for count in range(1, len(messages) + 1):
        for prompt in (False, True):
            text = known.turn(messages[:count], prompt=prompt)
            if text is not None:
                found += 1
                assert text == using.apply_chat_template(
                    messages[:count], tokenize=False, add_generation_prompt=prompt
                )
    return found


def unchecked(using: Any, monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Turns that render nothing twice, so that their result depends only on their own reasoning."""
    monkeypatch.setattr(turns, "_COMPARED", 0)
    monkeypatch.setattr(turns, "_MISSES", 10**9)

    def render(*_: Any) -> str:
        raise AssertionError("nothing is compared")

    return Turns(using, render)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_known_turn_equals_what_the_template_renders(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    using = tokenizer_with(template)
    known = unchecked(using, monkeypatch)
    counts: list[int] = []

    @given(messages=conversations(tools=False, alternating=template in ALTERNATING))
    @settings(max_examples=12, deadline=None, derandomize=True)
    def holds(messages: list[dict[str, Any]]) -> None:
        counts.append(agreeing(using, plain(messages, template in PARTS), known))

    holds()
    if template in BY_MESSAGE:
        assert sum(counts) >= 30


@pytest.mark.parametrize("why", LOOKS_AHEAD)
def test_for_a_template_that_looks_ahead_no_wrong_turn_is_known(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    using = copy.deepcopy(tokenizer_with("llama3"))
    using.chat_template = LOOKS_AHEAD[why]
    known = unchecked(using, monkeypatch)
    for count in (2, 3, 4):
        messages = [{"role": ("user", "assistant")[n % 2], "content": f"m{n}"} for n in range(count)]
        assert agreeing(using, messages, known) == 0


def test_the_first_conversations_are_also_rendered_turn_by_turn() -> None:
    using = tokenizer_with("llama3")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    asked: list[int] = []

    def render(given: Any, prompt: bool) -> str:
        asked.append(len(given))
        return "something else"

    known = Turns(using, render)
    known.begin(messages, messages)
    assert asked
    assert known.turn(messages, prompt=False) is None


def test_a_turn_of_another_conversation_is_not_known() -> None:
    using = tokenizer_with("llama3")
    known = Turns(using, lambda given, prompt: str(
        using.apply_chat_template(list(given), tokenize=False, add_generation_prompt=prompt)
    ))  # fmt: skip
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    known.begin(messages, messages)
    assert known.turn(messages, prompt=False)
    assert known.turn([dict(messages[0]), messages[1]], prompt=False) is None


@pytest.mark.parametrize("template", ["llama3", "qwen2_5_vl", "gemma"])
@given(
    pieces=st.lists(
        st.text(st.sampled_from("abé😀👩\u200d🚀\n \t'日<|im_end|>.1"), max_size=9), min_size=2, max_size=6
    )
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_fast_marking_of_tokens_equals_marking_by_offsets(template: str, pieces: list[str]) -> None:
    using = tokenizer_with(template)
    text, bounds = "", [0]
    for piece in pieces:
        text += piece
        bounds.append(len(text))
    spans = tuple(
        Span(start, end) for start, end in zip(bounds[1::2], bounds[2::2], strict=False) if start < end
    )
    entry = Rendered(text, spans, special=False)
    encoded = using([text], add_special_tokens=False)
    (ids,), (encoding,) = encoded["input_ids"], encoded.encodings
    quick = quickly_marked(entry, list(ids), encoding)
    slow = marked_by_offsets(entry, list(ids), encoding.offsets)
    assert quick in (None, slow)
    assert quick is not None or slow.torn or not spans or "\u200d" in text or not text.isascii()
