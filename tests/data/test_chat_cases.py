"""Published conversations that were once trained incorrectly: which parts of them are trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import prepare
from fmstune.data.preview import view_rows
from fmstune.data.rendering.answer import Writer
from fmstune.data.rendering.render import NOT_READ, Renderer
from fmstune.data.rows.messages import read_messages
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer
from tests.support.chat_templates import end_of, tokenizer_with

CASES = Path(__file__).parent / "cases" / "chats"
DEMO = load_tokenizer(ModelConfig(path="demo"))
WITH_TOOLS = ("qwen3", "qwen2_5", "llama3_1", "glm4moe", "gptoss")
ANY = (None, "qwen3", "llama3_1", "gemma", "deepseek_r1_distill")


def trained(name: str, template: str | None, **settings: Any) -> tuple[str, list[str]]:
    """The trained part of the first conversation of a case, and what is reported about it."""
    using = DEMO if template is None else tokenizer_with(template)
    data = prepare(
        DataConfig(train=str(CASES / f"{name}.jsonl"), max_rows=1, **settings), using, None, seed=0
    )
    words = [using.decode([label for label in row["labels"] if label != IGNORED]) for row in data.train]
    return "".join(words), data.summary.unused_lines()


@pytest.mark.parametrize("template", ANY)
def test_an_answer_of_weight_0_is_not_trained(template: str | None) -> None:
    words, _ = trained("weight", template)
    assert "GOODANSWER Paris." in words
    assert "BADANSWER" not in words


def test_an_answer_of_weight_0_is_not_trained_even_with_all_tokens() -> None:
    words, _ = trained("weight", "llama3", train_on="all")
    assert "GOODANSWER Paris." in words
    assert "Are you sure?" in words
    assert "BADANSWER" not in words
    with pytest.raises(DataError, match="line 1: an answer has its own weight, but cannot be separated from"):
        trained("weight", "qwen3", train_on="all")


@pytest.mark.parametrize("template", ["qwen3", "qwen3_5_think", "qwen3_6", "glm4moe"])
def test_each_of_three_answers_is_trained_once_with_its_end_token(template: str) -> None:
    words, _ = trained("multi", template)
    for answer in ("ANSWER-ONE", "ANSWER-TWO", "ANSWER-THREE"):
        assert words.count(answer + end_of(template)) == 1


@pytest.mark.parametrize("template", WITH_TOOLS)
@pytest.mark.parametrize("name", ["tool_dict", "tool_str", "fn_legacy", "sharegpt_fc"])
def test_a_call_and_the_answer_are_trained_and_the_result_is_not(name: str, template: str) -> None:
    words, _ = trained(name, template)
    assert "get_weather" in words
    assert "Rome" in words
    assert "It is 20 degrees." + end_of(template) in words
    assert "\\" not in words  # arguments are not encoded twice
    assert "temp" not in words


@pytest.mark.parametrize("name", ["tool_dict", "tool_str", "sharegpt_fc", "fn_legacy"])
def test_a_template_without_tools_refuses_the_row_with_a_remedy(name: str) -> None:
    with pytest.raises(
        DataError, match=r"line 1: .* does not support tools; set one that does: model\.chat_temp"
    ):
        trained(name, None)


@pytest.mark.parametrize("name", ["think_field", "think_inline"])
@pytest.mark.parametrize("template", ["qwen3", "gptoss", "deepseek_r1_distill"])
def test_reasoning_is_trained_in_the_position_of_the_model_family(name: str, template: str) -> None:
    words, said = trained(name, template)
    assert words.index("REASONING-TEXT") < words.index("FINAL-4")
    assert said == []


def test_reasoning_that_the_template_does_not_support_is_reported_or_kept() -> None:
    words, said = trained("think_field", "qwen2_5")
    assert words == "FINAL-4<|im_end|>"
    assert [line.partition(":")[0] for line in said] == ["reasoning is not trained"]
    assert "1 row" in said[0]
    kept = ("<think>\nREASONING-TEXT\n</think>\n\nFINAL-4<|im_end|>", [])
    assert trained("think_field", "qwen2_5", reasoning="keep") == kept
    assert trained("think_inline", "qwen2_5") == kept  # the row has it inline


@pytest.mark.parametrize("template", ANY)
@pytest.mark.parametrize("name", ["content_list", "role_human"])
def test_content_parts_and_other_names_for_roles_are_read(name: str, template: str | None) -> None:
    words, _ = trained(name, template)
    assert "HI-ANSWER" in words
    assert "hello" not in words


@pytest.mark.parametrize("template", ANY)
def test_an_empty_answer_in_the_middle_is_not_trained_and_reported(template: str | None) -> None:
    words, said = trained("empty_asst", template)
    assert words.count("BYE-ANS") == 1
    assert any(line.startswith("an empty answer is not trained (1 row") for line in said)


def test_the_rows_of_a_split_conversation_are_shown_as_its_parts() -> None:
    using = tokenizer_with("qwen3")
    data = prepare(DataConfig(train=str(CASES / "multi.jsonl"), max_rows=1), using, None, seed=0)
    names = [view.name for view in view_rows(data.train, using, 3, data.places)]
    assert names == [f"row {n}, part {n} of 3 of {CASES}/multi.jsonl line 1" for n in (1, 2, 3)]
    assert "1 conversation split into 3 rows" in data.summary.line()


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
            "questions in a row are joined",
        ),
        (
            [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
            "a system message is joined",
        ),
        (
            [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}],
            "a system message is joined",
        ),
        (
            [{"role": "assistant", "content": "h"}, {"role": "user", "content": "a"}],
            "an empty question is added",
        ),
    ],
)
def test_changes_that_fit_a_row_to_a_template_are_reported_or_refused(
    tmp_path: Path, messages: list[dict[str, str]], says: str
) -> None:
    rows = tmp_path / "x.jsonl"
    rows.write_text(json.dumps({"messages": [*messages, {"role": "assistant", "content": "ANS"}]}))
    using = tokenizer_with("gemma")
    data = prepare(DataConfig(train=str(rows)), using, None, seed=0)
    assert data.summary.unused_lines()[0].startswith(says)
    with pytest.raises(DataError, match=rf"line 1: {says}.*--strict-chat refuses that"):
        prepare(DataConfig(train=str(rows), strict_chat=True), using, None, seed=0)


def test_an_image_is_refused_with_its_row(tmp_path: Path) -> None:
    content = [{"type": "image", "url": "x.png"}, {"type": "text", "text": "what is it?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]}
    rows = tmp_path / "x.jsonl"
    rows.write_text(json.dumps(row))
    with pytest.raises(DataError, match="line 1: message 1 of `messages` has a part of the type 'image'"):
        prepare(DataConfig(train=str(rows)), DEMO, None, seed=0)


@pytest.mark.parametrize("template", ["qwen3", "llama3", "deepseek_r1_distill", "glm4moe"])
@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
@given(blanks=st.integers(0, 3), thought=st.text("abc \n", min_size=1).filter(str.strip), empty=st.booleans())
@settings(max_examples=15, deadline=None)
def test_reasoning_both_in_a_field_and_in_the_text_is_rendered_once(
    template: str, field: str, blanks: int, thought: str, empty: bool
) -> None:
    using, newlines = tokenizer_with(template), "\n" * blanks
    block = f"<think>{newlines}{'' if empty else thought.strip()}{newlines}</think>{newlines}"
    question = {"role": "user", "content": "q"}

    def written(content: str, **fields: str) -> list[str]:
        answer = {"role": "assistant", "content": content, **fields}
        row = {"messages": read_messages([question, answer], "here", "messages")}
        return [part.text for part in Renderer(Writer(using)).render(row, "messages", "here").parts]

    both = written(f"{block}words", **{field: thought})
    alone = written("words", **{field: thought})
    inline = written(f"{block}words")
    assert both == (inline if template == "llama3" and not empty else alone)
    with pytest.raises(DataError, match="and, between <think> and </think>, in its text, and they differ"):
        written(f"<think>{thought}d</think>words", **{field: thought})


@given(weight=st.sampled_from([0, 0.5, 1]), last=st.booleans())
@settings(deadline=None)
def test_reasoning_of_weight_0_that_the_history_omits_is_reported(weight: float, last: bool) -> None:
    """Qwen3 omits it before a question, and keeps it before a tool's result."""
    answer = {"role": "assistant", "content": "a", "reasoning_content": "because", "weight": weight}
    turns = [{"role": "user", "content": "q"}, answer, {"role": "user", "content": "r"}]
    turns.append({"role": "assistant", "content": "b"} | ({"weight": 0} if last else {}))
    row = {"messages": read_messages(turns, "here", "messages")}
    made = Renderer(Writer(tokenizer_with("qwen3"))).render(row, "messages", "here")
    assert (NOT_READ in made.remarks) == (weight == 0 and not last)
    # A template without a field for it renders the text unchanged, with its reasoning, in history too.
    inline = {"role": "assistant", "content": "<think>because</think>a", "weight": weight}
    row = {"messages": read_messages([turns[0], inline, *turns[2:]], "here", "messages")}
    made = Renderer(Writer(tokenizer_with("llama3"))).render(row, "messages", "here")
    assert NOT_READ not in made.remarks
