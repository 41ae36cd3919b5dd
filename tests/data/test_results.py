"""A tool's result is learnt as that of its own call, in whatever order the results stand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.data.rows.messages import read_messages
from fmstune.errors import DataError


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
def test_results_come_in_the_order_of_their_calls(order: list[int], anthropic: bool) -> None:
    read = read_messages(conversation(order, anthropic=anthropic), "line 1", "messages")
    assert [each["content"] for each in read[1:]] == [f"r{n}" for n in range(len(order))]


@pytest.mark.parametrize("anthropic", [True, False])
def test_a_result_of_an_unknown_call_is_refused(anthropic: bool) -> None:
    given_ = conversation([0], anthropic=anthropic)
    if anthropic:
        given_[1]["content"][0]["tool_use_id"] = "t9"
    else:
        given_[1]["tool_call_id"] = "t9"
    with pytest.raises(DataError, match=r"line 1: .*the id 't9', and the calls before it have 't0'"):
        read_messages(given_, "line 1", "messages")
