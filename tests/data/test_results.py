"""A tool's result belongs to its own call, whatever the order of the results."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.data.rendering.answer import Writer
from fmstune.data.rows.messages import read_messages
from fmstune.data.rows.results import NO_RESULT, OTHER_NAME
from fmstune.data.rows.unused import Unused
from fmstune.errors import DataError
from tests.support.chat_templates import tokenizer_with


def conversation(order: list[int], *, anthropic: bool) -> list[dict[str, Any]]:
    ids = [f"t{number}" for number in range(len(order))]
    if anthropic:
        calls = [{"type": "tool_use", "id": each, "name": "f", "input": {}} for each in ids]
        results = [{"type": "tool_result", "tool_use_id": f"t{n}", "content": f"r{n}"} for n in order]
        return [{"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    made = [{"id": each, "type": "function", "function": {"name": "f", "arguments": "{}"}} for each in ids]
    said = [{"role": "tool", "tool_call_id": f"t{n}", "content": f"r{n}"} for n in order]
    return [{"role": "assistant", "content": "", "tool_calls": made}, *said]


@given(st.integers(1, 5).flatmap(lambda n: st.permutations(range(n))), st.booleans())
def test_results_are_rendered_in_the_order_of_their_calls(order: list[int], anthropic: bool) -> None:
    read = read_messages(conversation(order, anthropic=anthropic), "line 1", "messages")
    assert [each["content"] for each in read[1:]] == [f"r{n}" for n in range(len(order))]


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[dict[str, Any]], int]:
    """Calls, in separate messages or in one, whose results are matched by ids, by the names of tools, or
    otherwise by their order; some are missing at the end. Returns the messages and the number of results."""
    count = draw(st.integers(1, 5))
    by = draw(st.lists(st.sampled_from(["id", "name", "order"]), min_size=count, max_size=count))
    calls = [
        {"type": "function", "id": f"t{n}", "function": {"name": f"f{n}", "arguments": "{}"}}
        for n in range(count)
    ]
    tells = {"id": lambda n: {"tool_call_id": f"t{n}"}, "name": lambda n: {"name": f"f{n}"}}
    results = [
        {"role": "tool", "content": f"r{n}", **tells.get(how, lambda n: {})(n)} for n, how in enumerate(by)
    ]
    told = draw(st.permutations([r for r, how in zip(results, by, strict=True) if how != "order"]))
    in_order = [r for r, how in zip(results, by, strict=True) if how == "order"]
    mixed = list(told)
    for result in in_order:
        first = mixed.index(in_order[in_order.index(result) - 1]) + 1 if result is not in_order[0] else 0
        mixed.insert(draw(st.integers(first, len(mixed))), result)
    apart = draw(st.booleans())
    asked = [calls] if not apart else [[call] for call in calls]
    answers = [{"role": "assistant", "content": "", "tool_calls": each} for each in asked]
    return [*answers, *mixed], count


@given(labelled())
def test_results_are_matched_by_ids_names_or_order(drawn: tuple[list[dict[str, Any]], int]) -> None:
    messages, count = drawn
    unused = Unused("x")
    read = read_messages([*messages, {"role": "assistant", "content": "so"}], "line 1", "messages", unused)
    results = [each["content"] for each in read if each["role"] == "tool"]
    assert results == [f"r{n}" for n in range(count)]
    assert unused.entries() == ()


def unused_parts(*messages: dict[str, Any]) -> list[str]:
    unused = Unused("x")
    read_messages(list(messages), "line 1", "messages", unused)
    return [entry.what for entry in unused.entries()]


CALL = conversation([0], anthropic=False)[0]
RESULT = {"role": "tool", "content": "r"}
SAYS, ASKS = {"role": "assistant", "content": "so"}, {"role": "user", "content": "and?"}


def test_a_call_without_a_result_is_reported_if_the_conversation_continues() -> None:
    two = {**CALL, "tool_calls": [*CALL["tool_calls"], *conversation([0], anthropic=False)[0]["tool_calls"]]}
    assert unused_parts(CALL, ASKS, SAYS) == [NO_RESULT]
    assert unused_parts(two, RESULT, SAYS) == [NO_RESULT]
    assert unused_parts(two, RESULT, CALL) == [NO_RESULT]
    for whole in ([CALL], [ASKS, CALL], [CALL, RESULT, SAYS], [CALL, CALL, RESULT, RESULT, SAYS]):
        assert unused_parts(*whole) == []
    assert unused_parts(CALL, SAYS, RESULT, SAYS) == []
    assert unused_parts(CALL, {**RESULT, "name": "g"}, SAYS) == [OTHER_NAME]


@pytest.mark.parametrize("anthropic", [True, False])
def test_a_result_of_an_unknown_call_is_refused(anthropic: bool) -> None:
    given_ = conversation([0], anthropic=anthropic)
    if anthropic:
        given_[1]["content"][0]["tool_use_id"] = "t9"
    else:
        given_[1]["tool_call_id"] = "t9"
    with pytest.raises(DataError, match=r"line 1: .*the id 't9', and the calls before it have 't0'"):
        read_messages(given_, "line 1", "messages")


@pytest.mark.parametrize(
    ("content", "results"),
    [
        ("<tool_response>\n1\n</tool_response>", ["1"]),
        ("<tool_response>1</tool_response>\n<tool_response>{}</tool_response>", ["1", "{}"]),
        ("so: <tool_response>1</tool_response>", None),
        ("<tool_response>1", None),
    ],
)
def test_tags_that_the_template_renders_around_results_are_not_duplicated(
    content: str, results: list[str] | None
) -> None:
    writer = Writer(tokenizer_with("qwen3"))
    asked = [ASKS, {"role": "assistant", "content": "<tool_call>\n{}\n</tool_call>"}]
    messages = read_messages([*asked, {"role": "tool", "content": content}, SAYS], "line 1", "messages")
    fitted = writer.fitted(messages, None, "line 1")
    said = [each["content"] for each in fitted.messages if each["role"] == "tool"]
    assert said == (results or [content])
    assert len(fitted.remarks) == bool(results)
    if results:
        assert writer.whole(fitted.messages, None, "").count("<tool_response>") == len(results)


@pytest.mark.parametrize("role", ["tool_call", "function_call"])
def test_consecutive_messages_that_are_calls_are_one_answer(role: str) -> None:
    def read(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return read_messages([{"role": "user", "content": "q"}, *messages], "line 1", "messages")

    calls = [{"role": role, "content": f'{{"name": "f{n}", "arguments": {{"n": {n}}}}}'} for n in range(3)]
    results = [{"role": "tool_response", "content": f"r{n}"} for n in range(3)]
    (_, answer, *rest) = read([*calls, *results])
    assert [call["function"]["name"] for call in answer["tool_calls"]] == ["f0", "f1", "f2"]
    assert [message["content"] for message in rest] == ["r0", "r1", "r2"]
    roles = [message["role"] for message in read([calls[0], results[0], calls[1], results[1]])]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]
    apart = read([calls[0] | {"loss": False}, calls[1] | {"loss": True}, *results[:2]])
    assert [message.get("weight") for message in apart] == [None, 0.0, 1.0, None, None]
