"""Tools reach the model whatever their format, and parts of their schemas that a chat template does not
render are reported."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig
from fmstune.data.prepare import prepare
from fmstune.data.rendering.answer import Writer
from fmstune.data.rendering.tool_words import DESCRIPTIONS, NAMES, NO_NAME, NOT_WRITTEN, RULES, VALUES
from fmstune.data.rows.tools import read_tools
from fmstune.errors import DataError
from tests.support.chat_templates import TEMPLATES, tokenizer_with
from tests.support.conversations import WITHOUT_TOOLS

ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "GOOD"}]
CITY = {"type": "object", "properties": {"qzcity": {"type": "string"}}}
NAMED = {"name": "weather", "description": "the weather"}
FORMS: dict[str, Any] = {
    "openai": {"type": "function", "function": {**NAMED, "parameters": CITY}},
    "bare": {**NAMED, "parameters": CITY},
    "responses": {"type": "function", **NAMED, "parameters": CITY, "strict": True},
    "text": {"type": "function", "function": {**NAMED, "parameters": json.dumps(CITY)}},
    "anthropic": {**NAMED, "input_schema": CITY},
    "mcp": {**NAMED, "inputSchema": CITY},
    "mcp inside": {"type": "function", "function": {**NAMED, "inputSchema": CITY}},
    "gemini": {"function_declarations": [{**NAMED, "parameters": CITY}]},
    "bedrock": {"toolSpec": {**NAMED, "inputSchema": {"json": CITY}}},
}


@functools.cache
def writer(template: str) -> Writer:
    return Writer(tokenizer_with(template))


WITH_TOOLS = tuple(template for template in TEMPLATES if template not in WITHOUT_TOOLS - {"lfm2"})
"""Templates that render the available tools; that of lfm2 does not support calls."""


def test_whether_a_template_renders_tools_is_known() -> None:
    assert tuple(template for template in TEMPLATES if writer(template).dialect.tools) == WITH_TOOLS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("template", WITH_TOOLS)
def test_the_parameters_of_a_tool_are_rendered_whatever_its_format(template: str, form: str) -> None:
    tools, plain = (read_tools([FORMS[name]], "here") for name in (form, "openai"))
    assert tools[0]["function"] | {"strict": True} == plain[0]["function"] | {"strict": True}
    fitted = writer(template).fitted(ASKED, tools, "here")
    assert "qzcity" in writer(template).whole(fitted.messages, tools, "here")
    assert fitted.remarks == ()


names = st.integers(0, 2)


@st.composite
def schemas(draw: Any, words: Any, depth: int = 2) -> dict[str, Any]:
    """A schema whose names, descriptions and values are all distinct words."""
    made: dict[str, Any] = {"type": draw(st.sampled_from(("string", "integer", "object", "array")))}
    if draw(st.booleans()):
        made["description"] = next(words["description"])
    if made["type"] == "string" and draw(st.booleans()):
        made["enum"] = [next(words["value"]) for _ in range(draw(st.integers(1, 2)))]
    if made["type"] == "string" and draw(st.booleans()):
        made["default"] = next(words["value"])
    if made["type"] == "object":
        inner = range(draw(st.integers(0, 2)) if depth else 0)
        made["properties"] = {next(words["name"]): draw(schemas(words, depth - 1)) for _ in inner}
    if made["type"] == "array":
        made["items"] = draw(schemas(words, depth - 1)) if depth else {"type": "string"}
    if depth and draw(st.integers(0, 4)) == 4:
        made = {"anyOf": [made, {"type": "null"}]}
    return made


@st.composite
def functions(draw: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    used: dict[str, list[str]] = {kind: [] for kind in ("name", "description", "value")}

    def fresh(kind: str) -> Any:
        for number in itertools.count():
            used[kind].append(f"qz{kind[0]}{number:02d}z")
            yield used[kind][-1]

    words = {kind: fresh(kind) for kind in used}
    properties = {next(words["name"]): draw(schemas(words)) for _ in range(draw(st.integers(1, 3)))}
    schema = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"name": "weather", "description": "D", "parameters": schema}, used


@given(functions(), st.sampled_from(WITH_TOOLS))
@settings(max_examples=100)
def test_exactly_the_omitted_names_descriptions_and_values_are_reported(
    drawn: tuple[dict[str, Any], dict[str, list[str]]], template: str
) -> None:
    function, words = drawn
    tools = [{"type": "function", "function": function}]
    written = tokenizer_with(template).apply_chat_template(ASKED, tools=tools, tokenize=False)
    lost = {kind for kind, used in words.items() if any(word not in written for word in used)}
    kinds = {"name": NAMES, "description": DESCRIPTIONS, "value": VALUES}
    remarks = writer(template).fitted(ASKED, tools, "here").remarks
    told = {kind for kind, name in kinds.items() if NOT_WRITTEN.format(name) in remarks}
    assert told == lost


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_omitted_parts_of_tools_are_reported_once_with_their_rows(tmp_path: Path, method: str) -> None:
    optional = {"anyOf": [{"type": "string"}, {"type": "null"}], "format": "date"}
    tool = {**NAMED, "input_schema": {"type": "object", "properties": {"when": optional}}}
    row: dict[str, Any] = {"messages": ASKED}
    if method == "dpo":
        row = {
            "prompt": ASKED[:1],
            "chosen": ASKED[1:],
            "rejected": [{"role": "assistant", "content": "BAD"}],
        }
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps({**row, 'tools': [tool]})}\n" * 3)
    config = DataConfig(train=str(path), cache=False)
    summary = prepare(config, tokenizer_with("gemma4"), None, seed=0, method=method).summary
    said = [line for line in summary.unused_lines() if "tools" in line]
    assert [line.partition(" (3 rows")[0] for line in said] == [NOT_WRITTEN.format(RULES)]


def test_parameters_without_an_enclosing_schema_and_tools_without_a_name_are_reported() -> None:
    flat = {**NAMED, "parameters": {"city": {"type": "str", "description": "which"}}}
    for template in ("gptoss", "gemma4"):
        remarks = writer(template).fitted(ASKED, read_tools([flat], "here"), "here").remarks
        assert NOT_WRITTEN.format(NAMES) in remarks
    assert writer("qwen2_5").fitted(ASKED, read_tools([flat], "here"), "here").remarks == ()
    assert NO_NAME not in writer("qwen2_5").fitted(ASKED, [{"type": "retrieval"}], "here").remarks


@pytest.mark.parametrize("tools", [{"a": 1}, "[{", ["search"], 5])
def test_invalid_tools_are_refused(tools: Any) -> None:
    with pytest.raises(DataError, match="`tools` takes a list of JSON schemas"):
        read_tools(tools, "here")
