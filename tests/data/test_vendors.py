"""Rows in the formats of other tools train what they mean, or are refused with a remedy that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.chat_templates import named_template
from fmstune.models.load import load_tokenizer

END = "<|im_end|>"
ASKED = f"<|im_start|>user\nHi?{END}\n<|im_start|>assistant\n"
ONE = f"{ASKED}Hello.{END}"
TWO = f"{ONE}\n<|im_start|>user\nWhy?{END}\n<|im_start|>assistant\nBecause.{END}"
SYSTEM = f"<|im_start|>system\nBe brief.{END}\n"
HELLO = {"role": "assistant", "content": "Hello."}


def prepared(
    path: Path, *rows: Any, method: str = "sft", template: str | None = None, **settings: Any
) -> Any:
    file = path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    if template is not None:
        tokenizer.chat_template = named_template(template, tokenizer)
    data: PreparedData = prepare(DataConfig(train=str(file), **settings), tokenizer, None, 1, method=method)
    return data, tokenizer


def shown(data: Any, tokenizer: Any) -> tuple[str, str]:
    row = data.train[0]
    trained = [token for token in row["labels"] if token != IGNORED]
    return tokenizer.decode(row["input_ids"]), tokenizer.decode(trained)


def refused(path: Path, *rows: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepared(path, *rows, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        ({"messages": [{"role": "User", "content": "Hi?"}, {"role": "Chatbot", "content": "Hello."}]}, ONE),
        ({"messages": [{"role": "User", "message": "Hi?"}, {"role": "Chatbot", "message": "Hello."}]}, ONE),
        (
            {
                "conversation": [
                    {"human": "Hi?", "assistant": "Hello."},
                    {"human": "Why?", "assistant": "Because."},
                ]
            },
            TWO,
        ),
        (
            {
                "conversation": [
                    {"system": "Be brief.", "input": "Hi?", "output": "Hello."},
                    {"system": "", "input": "Why?", "output": "Because."},
                ]
            },
            SYSTEM + TWO,
        ),
        ({"conversations": ["Hi?", "Hello.", "Why?", "Because."]}, TWO),
        (
            {
                "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
                "contents": [
                    {"role": "user", "parts": [{"text": "Hi"}, {"text": "?"}]},
                    {"role": "model", "parts": [{"text": "Hello."}]},
                ],
            },
            SYSTEM + ONE,
        ),
    ],
    ids=["Cohere", "Cohere's history", "Firefly", "XTuner", "LIMA", "Gemini"],
)  # fmt: skip
def test_conversations_of_other_tools_are_chats(row: dict[str, Any], seen: str, tmp_path: Path) -> None:
    data, tokenizer = prepared(tmp_path, row, row)  # a single one could be a table of one column
    text, trained = shown(data, tokenizer)
    assert text == seen
    assert trained == f"Hello.{END}" + (f"Because.{END}" if "Because" in seen else "")
    assert list(data.summary.unused_lines()) == []


def test_calls_of_xlam_are_learnt_with_their_tools(tmp_path: Path) -> None:
    tool = {"name": "weather", "description": "d", "parameters": {"city": {"type": "str", "default": "x"}}}
    call = {"name": "weather", "arguments": {"city": "Graz"}}
    row = {"query": "Hi?", "answers": json.dumps([call]), "tools": json.dumps([tool])}
    assert "does not support tools; set one that does: model.chat_template = chatml" in refused(tmp_path, row)
    data, tokenizer = prepared(tmp_path, row, template="chatml")
    text, trained = shown(data, tokenizer)
    assert '"city": {"type": "str", "default": "x"}' in text.partition("Hi?")[0]
    assert '{"name": "weather", "arguments": {"city": "Graz"}}' in trained
    assert "Hi?" not in trained
    assert list(data.summary.unused_lines()) == []


@pytest.mark.parametrize("method", ["dpo", "reward"])
@pytest.mark.parametrize(
    "asked",
    [
        {"messages": [{"role": "user", "content": "Hi?"}, HELLO]},
        {"query": "Hi?", "response": "Hello."},
    ],
)
def test_a_rejected_response_of_ms_swift_makes_a_pair(
    asked: dict[str, Any], method: str, tmp_path: Path
) -> None:
    data, tokenizer = prepared(tmp_path, asked | {"rejected_response": "Go."}, method=method)
    row = data.train[0]
    begin = tokenizer.decode(row["prompt_ids"]) if method == "dpo" else ""
    assert begin + tokenizer.decode(row["chosen_ids"]).rstrip("\n") == ONE
    assert begin + tokenizer.decode(row["rejected_ids"]).rstrip("\n") == f"{ASKED}Go.{END}"
    assert list(data.summary.unused_lines()) == []
    data, tokenizer = prepared(tmp_path, asked | {"rejected_response": "Go."})
    assert shown(data, tokenizer)[0] == ONE
    assert list(data.summary.unused_lines()) == ["columns not used: rejected_response (1 row)"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "Hi?", "answer": "Hello.", "image": {"path": "a.jpg"}}, ("question", "answer")),
        ({"question": "Hi?", "answer": "Hello.", "images": ["a.jpg"]}, ("question", "answer")),
        ({"question": "Hi?", "answer": "Hello.", "audio": {"array": [0.5]}}, ("question", "answer")),
        (
            {"conversations": ["<image>\nHi?", "Hello."], "image": "a.jpg"},
            ("conversations",),
        ),
    ],
)  # fmt: skip
def test_rows_with_media_are_refused(row: dict[str, Any], columns: tuple[str, ...], tmp_path: Path) -> None:
    said = refused(tmp_path, row)
    assert "rows.jsonl line 1: it has media in the column" in said
    assert "fmstune only trains on text" in said
    data, tokenizer = prepared(tmp_path, row, columns={name: name for name in columns})
    assert shown(data, tokenizer)[1] == f"Hello.{END}"
    plain = {name: value for name, value in row.items() if name in columns}
    data, _ = prepared(tmp_path, row, plain, skip_bad_rows=True)
    assert len(data.train) == 1


def test_a_path_beside_a_text_may_be_anything(tmp_path: Path) -> None:
    row = {"question": "Hi?", "answer": "Hello.", "image": "https://here/a.jpg"}
    data, _ = prepared(tmp_path, row, row | {"image": None, "images": []})
    assert list(data.summary.unused_lines()) == ["columns not used: image (1 row)"]


def test_messages_of_a_tree_are_refused(tmp_path: Path) -> None:
    """OASST has a message in each row, whose text would be learnt as a whole, the questions too."""
    row = {"message_id": "a", "parent_id": None, "text": "Hi?", "role": "prompter"}
    assert 'set data.columns = {text = "text"}' in refused(tmp_path, row, row | {"parent_id": "a"})
    data, tokenizer = prepared(tmp_path, row, columns={"text": "text"})
    assert shown(data, tokenizer)[0] == f"Hi?{END}"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"conversations": ["Hi?"]}, "1 text, which are question and answer by turns; the last one has no"),
        ({"system": "You.", "chat": "USER: Hi?\n\n\nASSISTANT: Hello."}, "`chat` is a transcript"),
        ({"input": "A chat.\n[|Human|] Hi?\n[|AI|] Hello."}, "`input` is a transcript"),
        ({"conversation": [{"q": "Hi?", "a": "Hello."}]}, "and `content`. To convert rows of another form"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "To convert rows of another form"),
        ({"prompt": [{"value": "Hi?"}], "response": [{"value": "Hello."}]}, "is needed. To convert rows"),
        (
            {"contents": [{"role": "user", "parts": [{"inlineData": {"data": "x"}}]}, HELLO | {"parts": []}]},
            "but a list. To convert rows",
        ),
    ],
)  # fmt: skip
def test_other_forms_are_refused_with_the_way_to_convert_them(
    row: dict[str, Any], says: str, tmp_path: Path
) -> None:
    said = refused(tmp_path, row, row)
    assert "rows.jsonl line 1" in said
    assert says in said


def test_a_handler_converts_them(tmp_path: Path) -> None:
    def split(row: dict[str, Any]) -> dict[str, Any]:
        asked, _, answered = row["chat"].partition("ASSISTANT: ")
        return {"conversations": [asked.removeprefix("USER: ").strip(), answered]}

    data, tokenizer = prepared(tmp_path, {"chat": "USER: Hi?\n\nASSISTANT: Hello."}, handler=split)
    assert shown(data, tokenizer) == (ONE, f"Hello.{END}")


QUESTION = {"role": "user", "content": "Hi?"}
GO = {"role": "assistant", "content": "Go."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, HELLO], "rejected_messages": [QUESTION, GO]},
        {"chosen_conversations": [QUESTION, HELLO], "rejected_conversations": [QUESTION, GO]},
    ],
)
def test_pairs_in_two_conversations_of_ms_swift_and_torchtune_are_pairs(
    row: dict[str, Any], tmp_path: Path
) -> None:
    data, tokenizer = prepared(tmp_path, row, method="dpo")
    (pair,) = data.train
    assert tokenizer.decode(pair["prompt_ids"]) == ASKED
    assert tokenizer.decode(pair["chosen_ids"]).rstrip("\n") == f"Hello.{END}"
    assert tokenizer.decode(pair["rejected_ids"]).rstrip("\n") == f"Go.{END}"
    assert list(data.summary.unused_lines()) == []


@pytest.mark.parametrize(
    "row", [{"messages": [QUESTION, HELLO]}, {"instruction": "Hi?", "input": "", "output": "Hello."}]
)
@pytest.mark.parametrize(("good", "bad"), [(True, False), ("true", "false")])
def test_the_kto_tag_of_llama_factory_is_a_label(
    row: dict[str, Any], good: Any, bad: Any, tmp_path: Path
) -> None:
    data, _ = prepared(tmp_path, row | {"kto_tag": good}, row | {"kto_tag": bad}, method="kto")
    assert sorted(data.train["label"]) == [False, True]
    assert list(data.summary.unused_lines()) == []


def test_a_boolean_loss_of_ms_swift_says_which_answers_are_learnt_and_a_number_is_data(
    tmp_path: Path,
) -> None:
    row = {"messages": [QUESTION, HELLO | {"loss": False}, QUESTION, GO | {"loss": True}]}
    assert shown(*prepared(tmp_path, row))[1] == f"Go.{END}"
    data, tokenizer = prepared(tmp_path, {"messages": [QUESTION, HELLO | {"loss": 2.31}]})
    assert shown(data, tokenizer)[1] == f"Hello.{END}"
    assert "the field `loss` of messages is not used" in str(list(data.summary.unused_lines()))


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("names", [("human_ref_A", "human_ref_B"), ("response_0", "response_1")])
def test_no_advice_learns_one_of_two_rival_answers(
    names: tuple[str, str], method: str, tmp_path: Path
) -> None:
    row = {"history": "Hi?", names[0]: "Hello.", names[1]: "Go.", "labels": 0}
    said = refused(tmp_path, row, method=method)
    assert f"If `{names[0]}` and `{names[1]}` are its answers, put the better one into `chosen`" in said
    assert "data.columns" not in said


@pytest.mark.parametrize("outer", ["body", "inputs"])
def test_messages_inside_another_column_are_named(outer: str, tmp_path: Path) -> None:
    row = {"custom_id": "1", "method": "POST", outer: {"model": "m", "messages": [QUESTION]}}
    said = refused(tmp_path, row)
    assert f"`{outer}` contains the messages: move them into a column with a function, data.handler." in said
