"""Variables of chat templates, such as `enable_thinking`, have the values that the configuration or a row
gives them, in training and in the saved model."""

from __future__ import annotations

import copy
import inspect
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.rendering import turns
from fmstune.data.rendering.answer import Writer
from fmstune.data.rendering.render import Renderer
from fmstune.data.rendering.variables import variables_of, with_variables
from fmstune.errors import DataError, ModelError
from fmstune.models.load import load_tokenizer
from fmstune.transformers_compat import render_chats
from tests.support.chat_templates import tokenizer_with
from tests.support.commands import fmstune

SAID = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
LOUD = (
    "{% for m in messages %}<{{ m.role }}>{{ '!' if loud }}{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
KNOWN: dict[str, dict[str, Any]] = {
    "qwen3": {"enable_thinking": False},
    "qwen3_5_think": {"enable_thinking": False},
    "qwen3_8": {"enable_thinking": True, "reasoning_effort": "low"},
    "glm4moe": {"enable_thinking": False},
    "gemma4_v5": {"enable_thinking": True},
    "gptoss": {"reasoning_effort": "high", "model_identity": 'You are {{ a }} "pen".\n{% set x = 1 %}é😀'},
    "llama3_1": {"date_string": "1 May 2026"},
    "nemotron_3_nano": {"enable_thinking": False},
}


@settings(max_examples=100)
@given(
    value=values, begin=st.sampled_from(["", "\n", "  ", " \n", "{# note #}\n", "{%- if true %}x{% endif %}"])
)
def test_a_value_in_the_source_renders_as_one_that_is_passed(value: Any, begin: str) -> None:
    source = (
        begin + "{% macro f(x) %}{{ x }}{{ v | tojson }}{% endmacro %}\n{% if true %}\n {{ f(1) }}{% endif %}"
    )
    assert variables_of(source) == {"v"}
    passed = render_chats([[]], source, v=value)
    assert render_chats([[]], with_variables(source, {"v": value})) == passed
    assert render_chats([[]], with_variables(source, {"v": "another"}), v=0) == render_chats(
        [[]], source, v=0
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{% if not v is defined %}{% set v = false %}{% endif %}{{ v }}", {"v"}),  # DeepSeek V3.1
        ("{% set v = v or 'low' %}{{ v }}", {"v"}),
        ("{% if not v %}{% set v = 'low' %}{% endif %}{{ v }}", {"v"}),
        ("{% if v is none %}{% set v = 'low' %}{% endif %}{{ v }}", {"v"}),
        ("{% set v = v if v in ['low', 'high'] else 'low' %}{{ v }}", {"v"}),
        ("{% macro f(v) %}{{ v }}{% endmacro %}{{ f(v) }}", {"v"}),
        ("{% macro f(v) %}{{ v is defined }}{% endmacro %}{{ f(1) }}", set()),
        ("{% if v %}{% set own = 1 %}{% endif %}{{ own }}", {"v"}),
        ("{% for m in messages %}{% set own = m.content %}{{ own }}{% endfor %}", set()),
        ("{{ documents }}{{ tools }}{{ bos_token }}{{ raise_exception }}{{ max_length }}", {"documents"}),
    ],
)
def test_a_variable_is_what_the_template_reads_before_it_sets_it(source: str, found: set[str]) -> None:
    assert variables_of(source) == found


def test_arguments_of_transformers_are_not_variables() -> None:
    arguments = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    names = [name for name in arguments if name not in ("self", "kwargs", "documents")]
    assert variables_of("".join(f"{{{{ {name} }}}}" for name in names)) == set()


@pytest.mark.parametrize("tools", [False, True])
def test_a_model_with_several_templates_has_the_variables_of_each(tools: bool) -> None:
    """Command R and Hermes have one for conversations, and one for those with tools."""
    tokenizer = copy.deepcopy(load_tokenizer(ModelConfig(path="demo")))
    tokenizer.chat_template = {"default": LOUD, "tool_use": "{{ tools | tojson }}" + LOUD}
    called = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    given = [called] if tools else None
    row = {"messages": SAID, "tools": given, "chat_template_kwargs": {"loud": True}}
    (part,) = Renderer(Writer(tokenizer)).render(row, "messages", "here").parts
    assert part.text == tokenizer.apply_chat_template(SAID, tokenize=False, tools=given, loud=True)


def test_a_row_may_have_documents_but_no_dates_which_transformers_writes_as_such() -> None:
    tokenizer = copy.deepcopy(load_tokenizer(ModelConfig(path="demo")))
    tokenizer.chat_template = "{% for d in documents %}[{{ d.text }}]{% endfor %}{{ day }}" + LOUD
    given: dict[str, Any] = {"documents": [{"title": "a", "text": "b"}], "day": "2026-05-01"}
    row = {"messages": SAID, "chat_template_kwargs": given}
    (part,) = Renderer(Writer(tokenizer)).render(row, "messages", "here").parts
    assert part.text.startswith("[b]2026-05-01<user>Hi?")
    assert part.text == tokenizer.apply_chat_template(SAID, tokenize=False, **given)
    given["day"] = date(2026, 5, 1)
    assert "<date>" in tokenizer.apply_chat_template(SAID, tokenize=False, **given)
    with pytest.raises(
        DataError, match=r'here: `chat_template_kwargs`: 2026-05-01 is a date .* "2026-05-01"'
    ):
        Renderer(Writer(tokenizer)).render(row, "messages", "here")


def test_values_of_rows_compile_no_template_again() -> None:
    """A date in each row took twenty times as long as rows without."""
    tokenizer = tokenizer_with("llama3_1")
    renderer = Renderer(Writer(tokenizer))
    rows = [{"messages": SAID, "chat_template_kwargs": {"date_string": f"{day} May"}} for day in range(9)]
    renderer.render(rows[0], "messages", "here")
    before = _compile_jinja_template.cache_info().misses, turns._marked.cache_info().misses
    for row in rows:
        renderer.render(row, "messages", "here")
    after = _compile_jinja_template.cache_info().misses, turns._marked.cache_info().misses
    assert after == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"])
def test_values_without_a_literal_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="cannot be"):
        with_variables(LOUD, {"loud": [value]})


@pytest.mark.parametrize("template", KNOWN)
def test_the_variables_of_a_row_reach_its_template_and_only_its(template: str) -> None:
    tokenizer, given = tokenizer_with(template), KNOWN[template]
    assert given.keys() <= variables_of(str(tokenizer.chat_template))
    renderer = Renderer(Writer(tokenizer))
    row = {"messages": SAID, "chat_template_kwargs": {**given, "qzunknown": 1}}
    found = renderer.render(row, "messages", "here")
    prompt = tokenizer.apply_chat_template(SAID[:1], tokenize=False, add_generation_prompt=True, **given)
    (part,), (span,) = found.parts, found.parts[0].spans
    assert part.text[: span.start] == prompt
    assert "Hello." in part.text[span.start : span.end]
    assert found.remarks == (
        "the variable `qzunknown` of `chat_template_kwargs` is not used: the chat template does not read it",
    )
    plain = renderer.render({"messages": SAID}, "messages", "here")
    assert plain == Renderer(Writer(tokenizer)).render({"messages": SAID}, "messages", "here")
    assert plain.parts != found.parts


def prepared(path: Path, rows: list[dict[str, Any]], method: str = "sft") -> tuple[PreparedData, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    tokenizer.chat_template = LOUD
    return prepare(DataConfig(train=str(path)), tokenizer, 64, 1, method=method), tokenizer


@pytest.mark.parametrize("form", [dict, json.dumps])
def test_rows_of_any_shape_have_variables(form: Any, tmp_path: Path) -> None:
    loud = {"chat_template_kwargs": form({"loud": True, "other": None})}
    shapes: list[dict[str, Any]] = [
        {"messages": SAID},
        {"prompt": SAID[:1], "completion": SAID[1:]},
        {"question": "Hi?", "answer": "Hello."},
    ]
    for shape in shapes:
        data, tokenizer = prepared(tmp_path / "rows.jsonl", [shape | loud, shape])
        texts = [tokenizer.decode(row["input_ids"]) for row in data.train]
        assert texts[0].startswith("<user>!Hi?<|im_end|><assistant>!Hello.<|im_end|>")
        assert texts[1].startswith("<user>Hi?<|im_end|><assistant>Hello.<|im_end|>")
        assert list(data.summary.unused_lines()) == []


def test_the_answers_of_preferences_have_the_variables_of_their_row(tmp_path: Path) -> None:
    pair = {"prompt": SAID[:1], "chosen": SAID[1:], "rejected": [{"role": "assistant", "content": "No."}]}
    data, tokenizer = prepared(
        tmp_path / "rows.jsonl", [pair | {"chat_template_kwargs": {"loud": True, "low": 1}}, pair], "dpo"
    )
    row, plain = data.train
    assert [tokenizer.decode(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")] == [
        "<user>!Hi?<|im_end|><assistant>", "!Hello.<|im_end|>", "!No.<|im_end|>"
    ]  # fmt: skip
    assert tokenizer.decode(plain["chosen_ids"]) == "Hello.<|im_end|>"
    assert any("`low`" in line and "1 row" in line for line in data.summary.unused_lines())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chat_template_kwargs": [1]}, "takes an object of variables"),
        ({"chat_template_kwargs": "loud"}, "chat_template_kwargs"),
    ],
)
def test_variables_of_another_form_are_refused(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        prepared(tmp_path / "rows.jsonl", [{"messages": SAID} | row])


def test_texts_have_no_template_for_variables(tmp_path: Path) -> None:
    row = {"prompt": "Hi?", "completion": " Hello.", "chat_template_kwargs": {"loud": True}}
    data, _ = prepared(tmp_path / "rows.jsonl", [row])
    assert "columns not used: chat_template_kwargs (1 row)" in data.summary.unused_lines()


def test_a_tuned_model_keeps_the_configured_values_as_defaults(tmp_path: Path) -> None:
    (tmp_path / "loud.jinja").write_text(LOUD)
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps({'messages': SAID})}\n" * 4)
    run = fmstune(
        "train", "--model", "demo", "--data", "rows.jsonl", "--output-dir", "out", "--max-steps", "1",
        "--tracker", "none", "--set", "model.chat_template=loud.jinja",
        "--set", "model.chat_template_kwargs={loud=true}", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.apply_chat_template(SAID, tokenize=False).startswith("<user>!Hi?")
    assert saved.apply_chat_template(SAID, tokenize=False, loud=False).startswith("<user>Hi?")
    again = load_tokenizer(ModelConfig(path=str(tmp_path / "out"), chat_template_kwargs={"loud": True}))
    assert again.chat_template == saved.chat_template
    shown = fmstune("data", "rows.jsonl", "--model", "out", "--rows", "1", cwd=tmp_path)
    assert "<user>!Hi?<|im_end|><assistant>⟦!Hello.<|im_end|>⟧" in shown.stdout


@pytest.mark.parametrize(
    ("template", "given", "said"),
    [
        (LOUD, {"lowd": True}, "'lowd' cannot be set: the chat template does not read it; it has loud"),
        (
            "{{ messages }}",
            {"messages": 1},
            "transformers has another use for this name; it has no variables",
        ),
        (LOUD, {"loud": date(2026, 5, 1)}, 'in quotation marks: "2026-05-01"'),
        (None, {"loud": True}, "has no chat template; set one"),
    ],
)
def test_variables_that_a_model_does_not_have_are_refused(
    template: str | None, given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=said):
        load_tokenizer(ModelConfig(path=str(model), chat_template_kwargs=given))
