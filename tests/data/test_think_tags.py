"""<think> and </think> in an answer: a block of reasoning, an empty block, or ordinary text."""

from __future__ import annotations

import functools
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fmstune.data.rendering.answer import Writer
from fmstune.data.rendering.render import Renderer
from fmstune.data.rendering.thinking import EMPTY_BLOCK
from fmstune.data.rendering.words import TAGS
from fmstune.data.rows.messages import read_messages
from fmstune.errors import DataError
from tests.support.chat_templates import TEMPLATES, tokenizer_with

NO_BLOCK = "the chat template leaves out empty blocks of reasoning"
IN_OTHER_WORDS = ("diffusion_gemma", "gemma4_v5", "gptoss", "muse_glimmer")
"""Families that render reasoning between other tags, and nothing if there is none."""


@functools.cache
def renderer(template: str, *, keep: bool = False) -> Renderer:
    return Renderer(Writer(tokenizer_with(template), keep))


def rendered(template: str, content: str, *, keep: bool = False) -> tuple[str, str, tuple[str, ...]]:
    """The rendered conversation with this answer, its trained part, and what is reported."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
    row = {"messages": read_messages(messages, "here", "messages")}
    made = renderer(template, keep=keep).render(row, "messages", "here")
    [part] = made.parts
    return part.text, "".join(part.text[span.start : span.end] for span in part.spans), made.remarks


@pytest.mark.parametrize("block", ["<think>\n\n</think>\n\n", "<think></think>", "\n<think>\n</think>\n"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_an_empty_block_is_rendered_or_reported(template: str, block: str) -> None:
    text, trained, remarks = rendered(template, f"{block}FINE")
    assert "FINE" in trained
    assert len(EMPTY_BLOCK.findall(text)) == (template not in IN_OTHER_WORDS)
    assert remarks == ((NO_BLOCK,) if template in IN_OTHER_WORDS else ())


@pytest.mark.parametrize("template", ["qwen2_5", "gemma4", "llama3_1", "qwen3", "deepseek_r1_distill"])
def test_an_empty_block_is_unchanged_if_no_reasoning_is_kept(template: str) -> None:
    text, _, remarks = rendered(template, "<think>\n\n</think>\n\nFINE", keep=True)
    assert bool(EMPTY_BLOCK.search(text)) != (NO_BLOCK in remarks)


MENTIONS = (
    "It ends with </think> and then the answer.",
    "The tag `</think>` closes it.",
    "Write (</think>).",
    "Use <think>x</think> tags.",
)


@pytest.mark.parametrize("content", MENTIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_that_mentions_the_tags_is_rendered_unchanged_or_reported_or_refused(
    template: str, content: str
) -> None:
    try:
        _, trained, remarks = rendered(template, content)
    except DataError:
        assert template == "qwen3_5_nothink"  # it splits the answer, which then does not follow its prompt
        return
    assert (content in trained) != any(TAGS in remark for remark in remarks)


@pytest.mark.parametrize("content", ["deep\n</think>\n\nFINE", "deep</think>FINE", "deep.\n</think> FINE"])
def test_reasoning_whose_start_tag_is_in_the_prompt_is_reasoning(content: str) -> None:
    for template in ("qwen3", "deepseek_r1_distill", "gptoss"):
        _, trained, remarks = rendered(template, content)
        assert re.search(r"deep.*FINE", trained, re.S)
        assert "</think> FINE" not in trained or template == "deepseek_r1_distill"
        assert remarks == ()


def bare(text: str) -> str:
    return re.sub(r"<[^<>]*>|\s+", "", text)


@given(
    st.lists(st.sampled_from(("<think>", "</think>", "\n", "\n\n", " ", "deep", "words", ".")), max_size=7),
    st.sampled_from(TEMPLATES),
)
@settings(max_examples=100)
def test_no_text_around_the_tags_is_lost_in_silence(pieces: list[str], template: str) -> None:
    content = "".join([*pieces, "end"])
    assume(bare(content) != "end" or "think" in content)
    try:
        text, _, remarks = rendered(template, content)
    except DataError:
        return
    found = re.sub(r"thought|analysis|final|assistant|to=(user|self)|channel|message", "", bare(text))
    assert bare(content) in found or remarks
