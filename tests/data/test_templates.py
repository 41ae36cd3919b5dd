"""Whatever the chat template, each answer is trained as the model will have to generate it: what follows the
template's own prompt for everything before it, up to and including the token that ends it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig
from fmstune.data.prepare import prepare
from fmstune.data.rendering.answer import Writer
from fmstune.data.rendering.render import Renderer
from fmstune.data.rows.messages import read_messages
from fmstune.errors import DataError
from tests.support.chat_templates import TEMPLATES, end_of, tokenizer_with
from tests.support.conversations import (
    ALTERNATING,
    ASKED_FIRST,
    TOOLS,
    WITHOUT_TOOLS,
    answers,
    calls_of,
    conversations,
    first_speaker,
    learnt,
    rendered,
    text,
    thinks,
)
from tests.support.documents import all_text
from tests.support.readme_templates import matrix

ONLY_CALLS = ("llama3", "muse")
"""They render no text next to a call, which is reported."""


@pytest.mark.parametrize("template", TEMPLATES)
def test_in_any_conversation_each_answer_is_trained_after_its_prompt_up_to_its_end(template: str) -> None:
    tools = TOOLS if template not in WITHOUT_TOOLS else None

    @given(
        messages=conversations(tools=tools is not None, alternating=template in ALTERNATING),
        marks=st.booleans(),
    )
    @settings(max_examples=8, deadline=None, derandomize=True)
    def holds(messages: list[dict[str, Any]], marks: bool) -> None:
        using = tokenizer_with(template, marks=marks)
        found = learnt(messages, using, tools)
        expected = [
            i
            for i, m in enumerate(messages)
            if m["role"] == "assistant" and (m["content"] or "tool_calls" in m)
        ]
        assert len(found) == len(expected)
        for number, each in zip(expected, found, strict=True):
            message = messages[number]
            prompt = rendered(template, messages[:number], using, tools, prompt=True)
            whole = rendered(template, messages[: number + 1], using, tools, prompt=False)
            greeted = template.startswith(ASKED_FIRST) and first_speaker(messages) == "assistant"
            asked = any(m["role"] == "user" for m in messages[:number])
            if prompt is not None and asked and not greeted:
                assert each.before == prompt
            assert each.trained.endswith(end_of(template, call="tool_calls" in message))
            said = (message["content"] or "").rpartition("</think>")[2].strip()
            if "tool_calls" not in message or not template.startswith(ONLY_CALLS):
                assert said in each.trained
            if "tool_calls" in message:
                assert "find" in each.trained
            if prompt is not None and whole is not None and whole.startswith(prompt):
                tail = whole[len(prompt) :]
                assert tail.startswith(each.trained) or each.trained.startswith(tail)
                assert not tail[len(each.trained) :].replace(str(using.eos_token), "").strip()

    holds()


LAST_QUESTION = (
    "{% if messages[0].role == 'system' %}{% set system, rest = messages[0].content, messages[1:] %}"
    "{% else %}{% set system, rest = none, messages %}{% endif %}<s>{% for m in rest %}"
    "{% if m.role == 'user' %}[INST] {{ system + '\n\n' if loop.last and system else '' }}"
    "{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
"""As Mistral 7B v0.3 renders it: the system message precedes a question that is the last message."""


def test_a_system_message_that_moves_is_where_the_prompt_has_it() -> None:
    using = copy.deepcopy(tokenizer_with("llava_next"))
    using.chat_template = LAST_QUESTION
    messages = [
        {"role": "system", "content": "S"},
        *({"role": role, "content": role + number} for number in "12" for role in ("user", "assistant")),
    ]
    prompts = [using.apply_chat_template(messages[:n], tokenize=False) for n in (2, 4)]
    assert "[INST] S\n\nuser2" in prompts[1]
    assert "[INST] user1" in prompts[1]
    found = learnt(messages, using, None)
    assert [each.before for each in found] == prompts
    assert [each.trained for each in found] == [" assistant1</s>", " assistant2</s>"]


@pytest.mark.parametrize("template", ["gptoss", "gemma4_v5", "diffusion_gemma", "qwen3"])
@pytest.mark.parametrize("thought", ["", "because"])
@pytest.mark.parametrize("content", ["", "Look."])
def test_an_answer_after_a_call_with_text_follows_its_prompt(
    template: str, thought: str, content: str
) -> None:
    using = tokenizer_with(template)
    call = {"type": "function", "id": "c1", "function": {"name": "find", "arguments": {"what": "it"}}}
    reasoning = {"reasoning_content": thought} if thought and not (content and template == "gptoss") else {}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": content, "tool_calls": [call]} | reasoning,
        {"role": "tool", "name": "find", "tool_call_id": "c1", "content": "R"},
        {"role": "assistant", "content": "Final."} | reasoning,
    ]
    last = learnt(messages, using, TOOLS)[-1]
    assert last.before == rendered(template, messages[:3], using, TOOLS, prompt=True)
    assert last.trained.endswith("Final." + end_of(template))
    if reasoning and thinks(using):
        assert thought in last.trained
    if template == "gptoss":
        assert "<|channel|>final<|message|>" in last.trained


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name not in WITHOUT_TOOLS])
def test_parallel_calls_are_all_trained_or_the_row_is_refused(template: str) -> None:
    using = tokenizer_with(template)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": calls_of({"what": 71}, {"what": 82, "on": True})},
    ]
    try:
        (found,) = learnt(messages, using, TOOLS)
    except DataError:
        assert template.startswith(("gptoss", "llama3"))  # they render one call per message
    else:
        assert "71" in found.trained
        assert "82" in found.trained
        assert found.before == rendered(template, messages[:1], using, TOOLS, prompt=True)


BY_ID = (
    "{% for m in messages %}<|im_{{ m.role }}|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "<|call|>{{ c.id }}<|with|>{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>{% endif %}"
)


def test_a_template_that_renders_calls_by_id_accepts_ids_that_contain_the_name() -> None:
    using = copy.deepcopy(tokenizer_with("qwen3"))
    using.chat_template = BY_ID
    (call,) = calls_of({"what": 7}, ids=("functions.find:0",))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert "functions.find:0" in learnt(messages, using, None)[0].trained
    call["id"] = "c1"
    with pytest.raises(DataError, match="writes a call by its `id` alone"):
        learnt(messages, using, None)


def test_a_prompt_that_closes_the_reasoning_is_reopened_for_kept_reasoning() -> None:
    using = copy.deepcopy(tokenizer_with("qwen3"))
    using.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}{% else %}<|a|></think>"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|a|></think>{% endif %}"
    )
    answer = {"role": "assistant", "content": "b", "reasoning_content": "because"}
    row = {"messages": read_messages([{"role": "user", "content": "a"}, answer], "here", "messages")}
    (part,) = Renderer(Writer(using, keep_reasoning=True)).render(row, "messages", "here").parts
    assert part.text == "<|u|>a<|a|><think>because</think>b<|im_end|>"
    assert part.text[part.spans[0].start :] == "because</think>b<|im_end|>"


@pytest.mark.parametrize("template", sorted(ALTERNATING - {"gemma"}))
@pytest.mark.parametrize("texts", [("b", "<think>r</think>c"), ("<think>r</think>b", "c")])
def test_merged_answers_keep_all_their_text(template: str, texts: tuple[str, str]) -> None:
    messages = [{"role": "user", "content": "a"}] + [{"role": "assistant", "content": each} for each in texts]
    (found,) = learnt(messages, tokenizer_with(template), None)
    assert all(word in found.trained for word in ("b", "c", "<think>", "r"))


def test_a_message_of_weight_0_is_not_trained_with_all_tokens() -> None:
    using = tokenizer_with("qwen3")
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "hidden", "weight": 0},
        {"role": "assistant", "content": "d"},
    ]
    found = "".join(each.trained for each in learnt(messages, using, None, all_tokens=True))
    assert "hidden" not in found
    assert "first" in found


@pytest.mark.parametrize("how", [{"all_tokens": True}, {"history": "template"}])
@pytest.mark.parametrize("keep", [False, True])
def test_reasoning_that_a_whole_conversation_omits_is_reported(how: dict[str, Any], keep: bool) -> None:
    thinking = {"role": "assistant", "content": "b", "reasoning_content": "because"}
    messages = read_messages([{"role": "user", "content": "a"}, thinking] * 2, "here", "messages")
    row = {"messages": [*messages[:-1], {"role": "assistant", "content": "d"}]}
    made = Renderer(Writer(tokenizer_with("qwen3"), keep), **how).render(row, "messages", "here")
    assert "because" not in "".join(part.text for part in made.parts)
    assert any(remark.startswith("reasoning is not trained") for remark in made.remarks)


@pytest.mark.parametrize("template", sorted(WITHOUT_TOOLS))
def test_a_template_without_tools_refuses_them(template: str) -> None:
    using = tokenizer_with(template)
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": "it"}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    with pytest.raises(DataError, match="does not support"):
        learnt(messages, using, TOOLS)
    if template != "deepseekv3":  # it renders calls, but no tool definitions
        with pytest.raises(DataError, match="does not support calls of tools"):
            learnt(messages, using, None)


def test_the_matrix_in_the_documents_matches_the_templates() -> None:
    assert matrix() in all_text(), "run `python -m tests.support.readme_templates`"


@pytest.mark.parametrize("template", TEMPLATES)
def test_in_any_pair_both_answers_follow_the_templates_prompt_up_to_their_end(
    template: str, tmp_path: Path
) -> None:
    tools = TOOLS if template not in WITHOUT_TOOLS else None

    @given(
        messages=conversations(tools=tools is not None, alternating=template in ALTERNATING),
        rejected=answers(silent=False),
        calls=st.booleans(),
        method=st.sampled_from(["dpo", "kto", "reward"]),
    )
    @settings(max_examples=4, deadline=None, derandomize=True)
    def holds(messages: list[dict[str, Any]], rejected: dict[str, Any], calls: bool, method: str) -> None:
        *earlier, chosen = messages
        if calls and tools:
            rejected = {"role": "assistant", "content": "", "tool_calls": calls_of({"what": "wrong"})}
        elif "Other." not in rejected["content"]:
            rejected = rejected | {"content": f"{rejected['content'].strip()} Other."}
        using = tokenizer_with(template)
        row = {"prompt": earlier, "chosen": [chosen], "rejected": [rejected]}
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row | ({"tools": tools} if tools else {})) + "\n")
        data = prepare(DataConfig(train=str(path), cache=False), using, None, seed=0, method=method).train
        if method == "kto":
            ids = {row["label"]: [*row["prompt_ids"], *row["completion_ids"]] for row in data}
            found = [text(ids[label], using) for label in (True, False)]
        else:
            (made,) = data
            found = [
                text([*made.get("prompt_ids", ()), *made[name]], using)
                for name in ("chosen_ids", "rejected_ids")
            ]
        for answer, whole in zip((chosen, rejected), found, strict=True):
            if method == "reward":  # the conversation that is judged
                expected = rendered(template, [*earlier, answer], using, tools, prompt=False)
                if expected is not None and not template.startswith(ASKED_FIRST):
                    assert whole.strip() == expected.strip()
                continue
            last = learnt([*earlier, answer], using, tools)[-1]
            assert whole.startswith(last.before + last.trained)
            assert not whole.removeprefix(last.before + last.trained).replace(using.eos_token, "").strip()
            prompt = rendered(template, earlier, using, tools, prompt=True)
            greeted = template.startswith(ASKED_FIRST) and first_speaker(messages) == "assistant"
            if prompt is not None and not greeted:
                assert whole.startswith(prompt)

    holds()
