"""Less common row formats are read, or refused with the cause and a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema.tables import DataConfig, DataSource
from fmstune.data.rendering.words import missing_words
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.messages import read_messages
from fmstune.data.rows.reader import Reader
from fmstune.data.rows.unused import Unused
from fmstune.errors import ConfigError, DataError
from fmstune.user_code import load_object

ASKED, GOOD = {"role": "user", "content": "q"}, {"role": "assistant", "content": "GOOD"}
BAD = {"role": "assistant", "content": "BAD"}
BLOCKS = [
    {"type": "text", "text": "ONE", "cache_control": {"type": "ephemeral"}},
    {"type": "text", "text": "TWO"},
]


def read(path: Path, content: Any, method: str = "sft", **config: Any) -> tuple[list[Any], list[str]]:
    """The rows, and which parts of them are not used."""
    if isinstance(content, (str, bytes)):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in content))
    reader = Reader(DataSource(str(path)), "train", DataConfig(**config), BadRows(), method=method)
    return [row for _, row in reader], [each.what for each in reader.unused.entries()]


@pytest.mark.parametrize("system", [BLOCKS, json.dumps(BLOCKS), ["ONE", "TWO"]])
@pytest.mark.parametrize("rest", [{"messages": [ASKED, GOOD]}, {"question": "q", "answer": "GOOD"}])
def test_a_system_prompt_in_blocks_is_their_text(tmp_path: Path, system: Any, rest: Any) -> None:
    [row], unused = read(tmp_path / "x.jsonl", [{"system": system, **rest}])
    assert row["messages"][0] == {"role": "system", "content": "ONE\n\nTWO"}
    assert unused == []


@pytest.mark.parametrize("system", [[{"type": "image", "text": "x", "source": 1}], [1], {"a": 1}])
def test_a_system_prompt_of_another_kind_is_refused_with_its_location(tmp_path: Path, system: Any) -> None:
    with pytest.raises(DataError, match=r"line 1: `system` is (a list|an object), where a text is needed\."):
        read(tmp_path / "x.jsonl", [{"system": system, "messages": [ASKED, GOOD]}])


def test_an_unused_column_is_reported_by_its_own_name(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "A"}, ASKED, GOOD]
    _, unused = read(tmp_path / "x.jsonl", [{"system_prompt": "B", "messages": messages}])
    assert unused == ["the column `system_prompt` is not used: the conversation has a system message"]


def test_openai_preference_pairs_are_pairs(tmp_path: Path) -> None:
    asked = {"messages": [ASKED], "tools": [{"name": "f"}], "parallel_tool_calls": True}
    row = {"input": asked, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
    [found], unused = read(tmp_path / "x.jsonl", [row], "dpo")
    assert (found["prompt"], found["chosen"], found["rejected"]) == ([ASKED], [GOOD], [BAD])
    assert found["tools"][0]["function"]["name"] == "f"
    assert unused == ["input.parallel_tool_calls"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
            'prompt = "prompt", completion = "chosen"',
        ),
        ({"prompt": "q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, 'messages = "chosen"'),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, 'messages = "chosen"'),
        ({"chosen": "q GOOD", "rejected": "q BAD"}, 'text = "chosen"'),
        (
            {"instruction": "q", "input": "CONTEXT", "chosen": "GOOD", "rejected": "BAD"},
            'instruction = "instruction", input = "input", completion = "chosen"',
        ),
        (
            {"question": "q", "context": "CONTEXT", "answer": "GOOD", "label": True},
            'question = "question", context = "context", answer = "answer"',
        ),
        (
            {"instruction": "q", "input": "", "output": "GOOD", "kto_tag": False},
            'instruction = "instruction", input = "input", output = "output"',
        ),
        (
            {"conversations": [ASKED], "chosen": GOOD, "rejected": BAD},
            'prompt = "conversations", completion = "chosen"',
        ),
        (
            {"messages": [ASKED], "chosen": "GOOD", "rejected": "BAD"},
            'prompt = "messages", completion = "chosen"',
        ),
    ],
)
def test_pairs_can_be_trained_as_examples_with_their_question(tmp_path: Path, row: Any, columns: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    reader = Reader(DataSource(str(path)), "train", DataConfig(), BadRows())
    list(reader)
    assert reader.recognised is not None
    assert reader.recognised.as_examples == columns
    named = dict(each.split(" = ") for each in columns.split(", "))
    [made], _ = read(path, [row], columns={ours: theirs.strip('"') for ours, theirs in named.items()})
    assert "'q" in str(made)
    assert "GOOD" in str(made)
    assert ("CONTEXT" in str(made)) == ("CONTEXT" in str(row))


@pytest.mark.parametrize(
    ("row", "method"),
    [
        ({"title": "T", "mapping": {"a": {"message": {}}}, "current_node": "a"}, "sft"),
        ({"instruction": "q", "completions": [{"response": "a", "score": 3}]}, "sft"),
        ({"instruction": "q", "completions": [{"response": "a", "score": 3}]}, "dpo"),
    ],
)
def test_for_rows_that_only_a_function_can_read_a_function_is_suggested(
    tmp_path: Path, row: Any, method: str
) -> None:
    with pytest.raises(DataError, match=r"write a function: data\.handler\.$"):
        read(tmp_path / "x.jsonl", [row], method)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["speaker", "from", "author"])
def test_messages_of_an_unknown_format_are_no_rows(tmp_path: Path, rows: int, name: str) -> None:
    turns = [{name: "human", "text": "q"}, {name: "gpt", "text": "a"}]
    with pytest.raises(DataError, match="message 1 of `conversations`"):
        read(tmp_path / "x.jsonl", [{"conversations": turns}] * rows)


def test_a_markdown_table_has_no_row_of_dashes(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "x.csv", "| question | answer |\n|---|:--:|\n| a? | --- |\n")
    assert [message["content"] for message in rows[0]["messages"]] == ["a?", "---"]
    assert len(rows) == 1


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_text_files_may_have_the_line_ends_of_any_platform(tmp_path: Path, end: str) -> None:
    text = end.join(("one", "two", "", "three", ""))
    rows, _ = read(tmp_path / "x.txt", text.encode())
    assert [row["text"] for row in rows] == ["one", "two", "three"]


def test_a_word_in_a_python_repr_is_not_a_missing_value() -> None:
    call = {"function": {"name": "f", "arguments": {"x": 'ü\n"q"'}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert list(missing_words([message], None, [f"f(x={call['function']['arguments']['x']!r})"])) == []


def test_a_function_passed_from_python_cannot_be_found_again_and_that_is_reported() -> None:
    with pytest.raises(ConfigError, match="It was passed from Python: move it into a module, and name that"):
        load_object("__main__:gone", "data.handler")
    with pytest.raises(ConfigError, match=r"json has no gone\.$"):
        load_object("json:gone", "data.handler")


def test_items_of_the_responses_api_become_the_conversation() -> None:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "ask both"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"},
        {
            "type": "function_call",
            "call_id": "a",
            "name": "f",
            "arguments": '{"x": 1}',
            "status": "completed",
        },
        {"type": "function_call", "call_id": "b", "name": "f", "arguments": '{"x": 2}'},
        {"type": "function_call_output", "call_id": "b", "output": "two"},
        {"type": "function_call_output", "call_id": "a", "output": "one"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
    ]
    unused = Unused("x")
    read = read_messages(items, "line 1", "messages", unused)
    calls = [
        {"type": "function", "id": name, "function": {"name": "f", "arguments": {"x": number}}}
        for number, name in enumerate("ab", 1)
    ]
    assert read == [
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "", "reasoning_content": "ask both", "tool_calls": calls},
        {"role": "tool", "content": "one", "tool_call_id": "a"},
        {"role": "tool", "content": "two", "tool_call_id": "b"},
        {"role": "assistant", "content": "So."},
    ]
    assert [entry.what for entry in unused.entries()] == [
        "messages.reasoning.encrypted_content",
        "messages.tool_calls.status",
    ]
