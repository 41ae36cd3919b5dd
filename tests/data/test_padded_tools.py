"""Rows with tools that a table has held are learnt like those it was made from: without its nulls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig
from fmstune.data.prepare import prepare
from fmstune.data.rows.padding import NOT_USED, without_padding
from fmstune.errors import DataError
from tests.support.chat_templates import tokenizer_with

FIND = {
    "type": "object",
    "properties": {"what": {"type": "string"}, "near": {"type": "integer", "description": "km"}},
    "required": ["what"],
}
BUY = {"type": "object", "properties": {"item": {"type": "string", "enum": ["lamp", "chair"]}}}


def row(name: str, schema: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    prompt = [{"role": "user", "content": f"{name}?"}]
    answer = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    tool = {"type": "function", "function": {"name": name, "description": "It.", "parameters": schema}}
    return {"prompt": prompt, "completion": answer, "tools": [tool]}


ROWS = [row("find", FIND, {"what": "x", "near": 3}), row("buy", BUY, {"item": "lamp"})]


def learnt(path: Path, method: str) -> tuple[list[Any], list[str]]:
    config = DataConfig(train=str(path), cache=False)
    data = prepare(config, tokenizer_with("qwen2_5"), None, seed=0, method=method)
    return data.train.to_list(), [entry.what for entry in data.summary.unused]


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_the_nulls_that_datasets_writes_to_json_are_not_learnt(tmp_path: Path, method: str) -> None:
    rows = [each | {"label": n == 0} for n, each in enumerate(ROWS)] if method == "kto" else ROWS
    own, exported = tmp_path / "own.jsonl", tmp_path / "exported.jsonl"
    own.write_text("".join(json.dumps(each) + "\n" for each in rows))
    datasets.Dataset.from_list(rows).to_json(exported)
    assert '"near":null' in exported.read_text()
    assert learnt(own, method)[1] == []
    assert learnt(exported, method) == (learnt(own, method)[0], [NOT_USED])


def test_pairs_with_tools_as_json_are_refused_as_examples(tmp_path: Path) -> None:
    said = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**said, "prompt": "q", "tools": json.dumps(ROWS[0]["tools"])}))
    with pytest.raises(DataError, match="dpo"):
        learnt(path, "sft")
    assert learnt(path, "dpo")[1] == []


def test_a_null_that_may_be_a_value_is_learnt() -> None:
    unit = {"type": ["string", "null"], "default": None, "enum": ["km", None]}
    given = row("find", {"type": "object", "properties": {"unit": unit}}, {"unit": None})
    assert without_padding(given) == (given, False)
    without = row("now", FIND, {})
    without["tools"][0]["function"] |= {"parameters": None, "strict": None}
    assert without_padding(without) == (without, False)
    of_no_tool = {**ROWS[0], "tools": ROWS[1]["tools"]}
    assert without_padding(of_no_tool) == (of_no_tool, False)


schemas: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.sampled_from([{"type": "string", "description": "d"}, {"type": "integer", "enum": [1, 2]}]),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(
        lambda properties: {"type": "object", "properties": properties}
    ),
    max_leaves=6,
)


def value_of(schema: dict[str, Any]) -> Any:
    known = schema.get("properties")
    return "v" if known is None else {key: value_of(each) for key, each in known.items()}


def padded(value: Any, to: Any) -> Any:
    """An object with the fields of another one, null where it has none, as in a column of a table."""
    if not isinstance(value, dict) or not isinstance(to, dict):
        return value
    return dict.fromkeys(to) | {key: padded(each, to.get(key)) for key, each in value.items()}


objects = schemas.filter(lambda schema: "properties" in schema)


@settings(max_examples=60)
@given(objects, objects)
def test_any_padding_is_removed(first: dict[str, Any], other: dict[str, Any]) -> None:
    own = row("find", first, value_of(first))
    wide = row("find", padded(first, other), padded(value_of(first), value_of(other)))
    assert without_padding(wide) == (own, wide != own)
