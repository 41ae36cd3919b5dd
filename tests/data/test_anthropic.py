"""Conversations in Anthropic's format are trained like the same conversations in OpenAI's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig
from fmstune.data.prepare import prepare
from fmstune.data.rows.anthropic import TEXT_AFTER_CALL, TEXT_BEFORE_RESULT
from fmstune.data.rows.results import NO_RESULT
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from tests.support.chat_templates import tokenizer_with

SCHEMA = {"type": "object", "properties": {"what": {"type": "string"}}}
words = st.text("abc é😀\n'\"{}", min_size=1, max_size=9).filter(str.strip)

Conversation = tuple[list[dict[str, Any]], list[dict[str, Any]]]


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """A conversation in Anthropic's format, and in OpenAI's."""
    theirs: list[dict[str, Any]] = []
    ours: list[dict[str, Any]] = []
    number = 0

    def both(message: dict[str, Any]) -> None:
        ours.append(message)
        theirs.append(
            message | {"content": draw(st.sampled_from([message["content"], part(message["content"])]))}
        )

    for _ in range(draw(st.integers(1, 2))):
        both({"role": "user", "content": draw(words)})
        if draw(st.booleans()):
            said, thought = draw(st.one_of(st.just(""), words)), draw(st.one_of(st.just(""), words))
            calls = [
                (f"c{number + n}", {"what": draw(words)}, draw(words)) for n in range(draw(st.integers(1, 2)))
            ]
            number += len(calls)
            theirs.append(
                {
                    "role": "assistant",
                    "content": [
                        *([{"type": "thinking", "thinking": thought}] if thought else []),
                        *(part(said) if said else []),
                        *(
                            {"type": "tool_use", "id": i, "name": "find", "input": what}
                            for i, what, _ in calls
                        ),
                    ],
                }
            )
            ours.append(
                {
                    "role": "assistant",
                    "content": said,
                    "tool_calls": [
                        {"id": i, "type": "function", "function": {"name": "find", "arguments": what}}
                        for i, what, _ in calls
                    ],
                }
                | ({"reasoning_content": thought} if thought else {})
            )
            more = draw(st.booleans())
            theirs.append(
                {
                    "role": "user",
                    "content": [
                        *(
                            {
                                "type": "tool_result",
                                "tool_use_id": i,
                                "content": draw(st.sampled_from([result, part(result)])),
                            }
                            for i, _, result in calls
                        ),
                        *(part("and now?") if more else []),
                    ],
                }
            )
            ours.extend({"role": "tool", "tool_call_id": i, "content": result} for i, _, result in calls)
            ours.extend([{"role": "user", "content": "and now?"}] if more else [])
        both({"role": "assistant", "content": draw(words)})
    return theirs, ours


def part(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def learnt(folder: Path, messages: Any, tools: Any, template: str = "qwen3") -> tuple[list[Any], list[str]]:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"system": "Be kind.", "tools": tools, "messages": messages}) + "\n")
    data = prepare(DataConfig(train=str(path), cache=False), tokenizer_with(template), None, seed=0)
    return data.train.to_list(), data.summary.unused_lines()


@pytest.mark.parametrize("template", ["qwen3", "glm4moe", "qwen2_5"])
@given(conversations())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_calls_results_and_reasoning_equal_those_of_the_other_format(
    tmp_path: Path, template: str, conversation: Conversation
) -> None:
    theirs, ours = conversation
    function = {"name": "find", "description": "Finds."}
    found = learnt(tmp_path, theirs, [{**function, "input_schema": SCHEMA}], template)
    openai = [{"type": "function", "function": {**function, "parameters": SCHEMA}}]
    assert found == learnt(tmp_path, ours, openai, template)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_result_belongs_to_its_call_whatever_text_surrounds_it(tmp_path: Path, before: int) -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": "sun"}
    content = [*part("first. "), *part("second.")]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "find", "input": {}}]},
        {"role": "user", "content": [*content[:before], result, *content[before:]]},
        {"role": "assistant", "content": "d"},
    ]
    rows, said = learnt(tmp_path, messages, [{"name": "find", "description": "d", "input_schema": SCHEMA}])
    text = tokenizer_with("qwen3").decode(rows[-1]["input_ids"])
    assert text.index("<tool_call>") < text.index("sun") < text.index("first. second.")
    assert NO_RESULT not in "\n".join(said)
    assert (TEXT_BEFORE_RESULT in "\n".join(said)) == bool(before)


def test_what_only_anthropics_format_can_express_is_reported(tmp_path: Path) -> None:
    call = {"type": "tool_use", "id": "c", "name": "find", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "r", "is_error": True}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [call, *part("and words after it")]},
        {"role": "user", "content": [result]},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, *part("a")],
        },
    ]
    rows, said = learnt(tmp_path, messages, [{"name": "find", "input_schema": SCHEMA}])
    assert "columns not used: messages.content.is_error, messages.content.signature (1 row)" in said
    assert any(TEXT_AFTER_CALL in line for line in said)
    trained = "".join(
        tokenizer_with("qwen3").decode([label for label in row["labels"] if label != IGNORED]) for row in rows
    )
    assert "and words after it" in trained


def test_an_image_in_a_result_and_calls_in_two_fields_are_refused(tmp_path: Path) -> None:
    tools = [{"name": "find", "input_schema": SCHEMA}]
    call = {"type": "tool_use", "id": "c", "name": "find", "input": {"what": "a"}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image", "source": {}}]}
    calling = {"role": "assistant", "content": [call]}
    with pytest.raises(DataError, match=r"message 3 .* has a part of the type 'image'"):
        learnt(
            tmp_path,
            [
                {"role": "user", "content": "q"},
                calling,
                {"role": "user", "content": [result]},
                {"role": "assistant", "content": "a"},
            ],
            tools,
        )
    other = {"function": {"name": "find", "arguments": {"what": "b"}}}
    with pytest.raises(DataError, match="calls in its `content` and others in a field"):
        learnt(tmp_path, [{"role": "user", "content": "q"}, calling | {"tool_calls": [other]}], tools)


def test_the_content_parts_of_openai_responses_are_text(tmp_path: Path) -> None:
    messages = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "a", "annotations": []}],
        },
    ]
    plain = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert learnt(tmp_path, messages, None) == learnt(tmp_path, plain, None)
    assert learnt(tmp_path, messages, None)[1] == []
