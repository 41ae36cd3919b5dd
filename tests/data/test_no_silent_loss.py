"""Everything in a row's conversation is trained as written, refused, or reported: whatever fields messages,
calls, parts and turns have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import prepare
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer
from tests.support.chat_templates import tokenizer_with

DEMO = load_tokenizer(ModelConfig(path="demo"))


def user(content: Any = "q", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def answer(content: Any = "GOOD", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def chat(*messages: Any, **columns: Any) -> list[dict[str, Any]]:
    return [{"messages": list(messages), **columns}]


def calling(call: dict[str, Any]) -> list[dict[str, Any]]:
    return chat(user(), answer("", tool_calls=[call]))


def file_of(folder: Path, rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def learnt(
    path: Path, template: str | None = None, method: str = "sft", **options: Any
) -> tuple[str, str, str]:
    """All text rendered from the rows, the trained part of it, and what is reported about the rest."""
    using = tokenizer_with(template) if template else DEMO
    data = prepare(DataConfig(train=str(path), cache=False, **options), using, None, seed=0, method=method)
    if method != "sft":
        wholes = [using.decode([*row["prompt_ids"], *row["chosen_ids"]]) for row in data.train]
        return "\n".join(wholes), "", "\n".join(data.summary.unused_lines())
    trained = [[label for label in row["labels"] if label != IGNORED] for row in data.train]
    return (
        "\n".join(using.decode(row["input_ids"]) for row in data.train),
        "\n".join(map(using.decode, trained)),
        "\n".join(data.summary.unused_lines()),
    )


NAMED = {
    "messages.tool_calls.reason": calling({"function": {"name": "f", "arguments": {}}, "reason": "R"}),
    "messages.tool_calls.function.why": calling({"function": {"name": "f", "arguments": {}, "why": "R"}}),
    "messages.tool_calls.args": calling({"name": "f", "arguments": {"a": 1}, "args": {"a": 2}}),
    "messages.content.train": chat(user([{"type": "text", "text": "hi", "train": True}]), answer()),
    "messages.content.signature": chat(
        user(), answer([{"type": "thinking", "thinking": "T", "signature": "S"}, "GOOD"])
    ),
    "messages.value": chat(user("hi", value="other"), answer()),
    "messages.from": chat(user("hi", **{"from": "gpt"}), answer()),
    "messages.function_call": chat(
        user(),
        answer(
            "", tool_calls=[{"name": "f", "arguments": {}}], function_call={"name": "g", "arguments": "{}"}
        ),
    ),
    "messages.reasoning": chat(user(), answer(reasoning=True)),
    "functions": chat(user(), answer(), tools=[{"name": "f"}], functions=[{"name": "g"}]),
    "field `name` of messages": chat(user(name="Alice"), answer()),
    "the field `name`": chat(user(), answer(name="Bot")),
    "field `text` of messages": chat(user(text="LOST"), answer()),
    "field `mood` of messages": [{"conversation": [{"input": "q", "output": "GOOD", "mood": "m"}]}] * 2,
    "messages after the last answer": chat(user(), answer(), user("unanswered")),
    "reasoning of messages that are not the assistant's": chat(user(reasoning_content="R"), answer()),
}


@pytest.mark.parametrize("name", NAMED)
def test_fields_that_no_code_reads_are_reported(name: str, tmp_path: Path) -> None:
    _, _, said = learnt(file_of(tmp_path, NAMED[name]), "qwen3")
    assert name in said


REFUSED = {
    "a call of 'f' without `arguments`, but with `payload`": calling({"name": "f", "payload": {"a": 1}}),
    "the key `a` twice": calling({"name": "f", "arguments": '{"a": 1, "a": 2}'}),
    "`weight` 1 and `train` False": chat(user(), answer(weight=1, train=False)),
    "`train` True and `training` False": chat(user(), answer(train=True, training=False)),
    "reasoning in `reasoning` and in `thinking`": chat(user(), answer(reasoning="one", thinking="two")),
    "and in `reasoning_content`, and they differ": chat(
        user(), answer([{"type": "thinking", "thinking": "one"}, "GOOD"], reasoning_content="two")
    ),
    "`weight` and `loss_weight` contradict": [
        {"prompt": "a", "completion": "b", "weight": 0, "loss_weight": 1}
    ],
    "line 2: it has no `labels`": [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [5, 6]}],
    "3 `input_ids` and 2 of `attention_mask`": [{"input_ids": [5, 6, 7], "attention_mask": [1, 0]}],
}


@pytest.mark.parametrize("says", REFUSED)
def test_contradictory_or_unreadable_rows_are_refused(says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line \d") as refused:
        learnt(file_of(tmp_path, REFUSED[says]), "qwen3")
    assert says in str(refused.value)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_contradictory_weights_are_refused_in_preferences(tmp_path: Path, method: str) -> None:
    row = {"prompt": [user()], "chosen": [answer(weight=1, train=False)], "rejected": [answer("BAD")]}
    with pytest.raises(DataError, match="contradict each other"):
        learnt(file_of(tmp_path, [row]), "qwen3", method)


@pytest.mark.parametrize("key", ["arguments", "parameters", "input", "args", "kwargs"])
@pytest.mark.parametrize("form", ["bare", "inside", "beside", "anthropic"])
def test_the_arguments_of_a_call_are_trained_under_each_of_their_names(
    tmp_path: Path, key: str, form: str
) -> None:
    arguments = {key: {"city": "GRAZ"}}
    call: dict[str, Any] = {
        "bare": {"name": "f", **arguments},
        "inside": {"type": "function", "function": {"name": "f", **arguments}},
        "beside": {"function": {"name": "f"}, **arguments},
        "anthropic": {"type": "tool_use", "id": "c", "name": "f", **arguments},
    }[form]
    _, trained, said = learnt(file_of(tmp_path, calling(call)), "qwen2_5")
    assert '{"city": "GRAZ"}' in trained
    assert said == ""


@given(
    st.dictionaries(st.sampled_from(("index", "note", "score", "thought", "meta")), st.integers(1, 9)),
    st.sampled_from(("call", "part", "message")),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_unknown_field_is_reported_wherever_it_is(
    tmp_path: Path, fields: dict[str, int], where: str
) -> None:
    rows = {
        "call": chat(user(), answer("", tool_calls=[{"name": "f", "arguments": {}, **fields}])),
        "part": chat(user([{"type": "text", "text": "q", **fields}]), answer()),
        "message": chat(user(**fields), answer()),
    }[where]
    _, _, said = learnt(file_of(tmp_path, rows), "qwen2_5")
    assert all(name in said for name in fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": ["DEEP", "DEEPER"]},
        {"reasoning": {"text": "DEEP"}},
        {"thinking": "DEEP", "reasoning": "DEEP"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "DEEP"}]}, "GOOD"]},
        {
            "content": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "DEEP"}]},
                {"type": "text", "text": "GOOD"},
            ]
        },
    ],
)
def test_reasoning_is_trained_in_any_format(tmp_path: Path, fields: dict[str, Any]) -> None:
    _, trained, said = learnt(file_of(tmp_path, chat(user(), answer() | fields)), "qwen3")
    assert trained.startswith("<think>\nDEEP")
    assert trained.count("DEEP\n") == 1
    assert "GOOD" in trained
    assert said == ""


@pytest.mark.parametrize(
    "result", [["Graz", "Wien"], [{"text": "tweet", "likes": 3}], [{"type": "flight", "price": 3}], [1, 2]]
)
def test_a_list_that_a_tool_returns_is_json(tmp_path: Path, result: list[Any]) -> None:
    rows = chat(
        user(), answer("", tool_calls=[{"name": "f", "arguments": {}}]), {"role": "tool", "content": result}
    )
    rows[0]["messages"].append(answer())
    written, _, said = learnt(file_of(tmp_path, rows), "qwen2_5")
    assert json.dumps(result) in written
    assert said == ""


def test_text_parts_that_a_tool_returns_are_its_text(tmp_path: Path) -> None:
    rows = chat(user(), {"role": "tool", "content": [{"type": "text", "text": "GRAZ"}]}, answer())
    assert "\nGRAZ\n" in learnt(file_of(tmp_path, rows), "qwen2_5")[0]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("unlearnt", [{"weight": 0}, {"output_with_loss": False}])
def test_a_turn_of_input_and_output_keeps_its_weight_and_the_row_its_columns(
    tmp_path: Path, rows: int, unlearnt: dict[str, Any]
) -> None:
    turns = [{"input": "a", "output": "BAD"} | unlearnt, {"input": "c", "output": "GOOD", "reasoning": "R"}]
    path = file_of(tmp_path, [{"system": "SYSTEM", "conversation": turns}] * rows)
    written, trained, _ = learnt(path, "qwen3")
    assert "SYSTEM" in written
    assert "R\n</think>\n\nGOOD" in trained
    assert "BAD" not in trained


@pytest.mark.parametrize("said", [{"weight": 1}, {"train": True}])
def test_an_answer_in_a_prompt_is_trained_if_the_row_says_so(tmp_path: Path, said: dict[str, Any]) -> None:
    row = {"prompt": [user(), answer("FIRST", **said), user()], "completion": [answer("SECOND")]}
    assert "FIRST" in learnt(file_of(tmp_path, [row]))[1]
    row["prompt"] = [user(), answer("FIRST"), user()]
    assert "FIRST" not in learnt(file_of(tmp_path, [row]))[1]


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_next_to_plain_text_preferences_are_reported(tmp_path: Path, name: str) -> None:
    row = {"prompt": "q", "chosen": "c", "rejected": "r", name: [{"name": "f"}]}
    assert f"columns not used: {name}" in learnt(file_of(tmp_path, [row]), "qwen2_5", "dpo")[2]


@pytest.mark.parametrize("cell", ["0", "false", "0.0", "False"])
def test_cells_of_a_table_decide_what_is_trained(tmp_path: Path, cell: str) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(f"prompt,completion,weight\nq,GOOD,1\nq,BAD,{cell}\nq,ALSO,\n")
    _, trained, _ = learnt(table)
    assert ("GOOD" in trained, "BAD" in trained, "ALSO" in trained) == (True, False, True)
    table.write_text(f"prompt,completion,train_on_input\nlong question,GOOD,true\nhidden one,GOOD,{cell}\n")
    _, trained, _ = learnt(table)
    assert ("question" in trained, "hidden" in trained) == (True, False)


@pytest.mark.parametrize("text", ['{"from": "EUR", "value": 12}', '{"role": "assistant", "content": "x"}'])
def test_a_completion_that_contains_json_is_trained_unchanged(tmp_path: Path, text: str) -> None:
    row = {"prompt": "Extract: ", "completion": text}
    assert text in learnt(file_of(tmp_path, [row]))[1]


def test_a_json_list_of_data_is_also_text(tmp_path: Path) -> None:
    text = '[{"from": "EUR", "value": 12}, {"role": "admin", "content": "x"}]'
    assert text in learnt(file_of(tmp_path, [{"prompt": "Extract: ", "completion": text}]))[1]


def test_cells_that_contain_messages_are_parsed(tmp_path: Path) -> None:
    row = {"prompt": json.dumps([user()]), "completion": json.dumps(answer())}
    assert learnt(file_of(tmp_path, [row]), "qwen2_5")[1] == "GOOD<|im_end|>"
    pair = {"prompt": row["prompt"], "chosen": row["completion"], "rejected": json.dumps(answer("BAD"))}
    assert "assistant\nGOOD<|im_end|>" in learnt(file_of(tmp_path, [pair]), "qwen2_5", "dpo")[0]


def test_the_weight_of_an_answer_that_preferences_do_not_train_is_reported(tmp_path: Path) -> None:
    prompt = [user(), answer("FIRST", weight=1), user()]
    row = {"prompt": prompt, "chosen": [answer()], "rejected": [answer("BAD")]}
    assert "weight of a message of the prompt" in learnt(file_of(tmp_path, [row]), "qwen2_5", "dpo")[2]


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": '[{"role": "user", "content": "a", "content": "b"}]'},
        {"prompt": '[{"role": "user", "content": "a", "content": "b"}]', "completion": [answer()]},
        {"messages": [user(), answer()], "tools": '[{"name": "f", "name": "g"}]'},
    ],
)
def test_json_text_with_a_duplicate_key_is_refused(tmp_path: Path, columns: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"line 1.* twice, with different values"):
        learnt(file_of(tmp_path, [columns]), "qwen2_5")


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": {"role": ["user", "assistant"], "content": ["q", "GOOD"]}},
        {"conversations": {"from": ["human", "gpt"], "value": ["q", "GOOD"]}},
        {"messages": [user(), answer()], "tools": "null"},
    ],
)
def test_layouts_that_tables_use_are_read(tmp_path: Path, columns: dict[str, Any]) -> None:
    assert learnt(file_of(tmp_path, [columns]), "qwen2_5")[1:] == ("GOOD<|im_end|>", "")


def test_a_map_of_a_parquet_file_is_an_object(tmp_path: Path) -> None:
    call = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.string()))])
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(call))])
    calls = [{"name": "f", "arguments": [("city", "GRAZ")]}]
    rows = pa.array([[user(), answer(None, tool_calls=calls)]], pa.list_(message))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"messages": rows}), path)
    assert '{"city": "GRAZ"}' in learnt(path, "qwen2_5")[1]


def test_a_refusal_is_the_answer_if_there_is_no_other(tmp_path: Path) -> None:
    refusing = answer(None, refusal="SORRY")
    assert "SORRY" in learnt(file_of(tmp_path, chat(user(), refusing)))[1]
    assert "SORRY" not in learnt(file_of(tmp_path, chat(user(), answer("GOOD", refusal=None))))[1]
    beside = learnt(file_of(tmp_path, chat(user(), answer("GOOD", refusal="SORRY"))))
    assert "SORRY" not in beside[1]
    assert "refusal" in beside[2]


def test_a_cell_that_contains_its_delimiter_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\nhello, world\nyo\n")
    with pytest.raises(DataError, match="it has 2; put a text with a comma in it in quotation marks"):
        learnt(path)
