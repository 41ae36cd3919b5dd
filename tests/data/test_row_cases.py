"""Published rows: the content of each column is in what the model sees, or is reported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema.tables import DataConfig, DataSource, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.preview import view_rows
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader, Row
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer

CASES = Path(__file__).parent / "cases" / "rows"
DEMO = load_tokenizer(ModelConfig(path="demo"))
BARE = load_tokenizer(ModelConfig(path="demo"))
BARE.chat_template = None


@dataclass(frozen=True)
class Seen:
    """The first row: everything that the model sees, and the trained part of it."""

    whole: str
    trained: str
    unused: list[str]


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def seen(source: str, *, chat: bool = True, **settings: Any) -> Seen:
    using = DEMO if chat else BARE
    data: PreparedData = prepare(DataConfig(train=source, **settings), using, None, seed=1)
    row = data.train[0]
    trained = using.decode([label for label in row["labels"] if label != IGNORED])
    return Seen(using.decode(row["input_ids"]), trained, data.summary.unused_lines())


def pairs(source: str, method: str = "dpo", *, chat: bool = True) -> tuple[list[Row], list[str]]:
    """The rows as the method trains on them, and the columns that are not used."""
    reader = Reader(DataSource(source), "train", DataConfig(), BadRows(), chat=chat, method=method)
    return [row for _, row in reader], [each.what for each in reader.unused.entries()]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", ["sys_pc.jsonl", "inst_sys_prompt.jsonl"])
def test_a_system_column_with_any_shape_comes_first(name: str, chat: bool) -> None:
    found = seen(str(CASES / name), chat=chat)
    question = "P-TEXT?" if name == "sys_pc.jsonl" else "q"
    assert 0 <= found.whole.index("SYS-TEXT") < found.whole.index(question)
    assert "SYS-TEXT" not in found.trained
    assert not found.unused


def test_a_history_becomes_the_turns_before_the_question() -> None:
    found = seen(str(CASES / "alpaca_hist.jsonl"))
    said = ["SYS", "First?", "FIRST-OUT", "Second?", "SECOND-OUT", "Third?", "THIRD-OUT"]
    places = [found.whole.index(words) for words in said]
    assert places == sorted(places)
    assert [words for words in said if words in found.trained] == ["FIRST-OUT", "SECOND-OUT", "THIRD-OUT"]


def test_without_a_chat_template_a_history_is_refused() -> None:
    with pytest.raises(DataError, match="`history` makes it a conversation, but the model has no chat templ"):
        seen(str(CASES / "alpaca_hist.jsonl"), chat=False)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("name", "words", "trained"),
    [
        ("dolly.jsonl", ["q?", "CTX"], "RESP-ANS"),
        ("prompt_response.jsonl", ["q?"], "A"),
        ("input_output.jsonl", ["q?"], "A"),
    ],
)
def test_questions_and_answers_are_recognised_under_their_usual_names(
    name: str, words: list[str], trained: str, chat: bool
) -> None:
    found = seen(str(CASES / name), chat=chat)
    assert all(word in found.whole for word in words)
    assert found.trained.strip().removesuffix("<|im_end|>") == trained
    assert found.unused == (["columns not used: category (3 rows)"] if name == "dolly.jsonl" else [])


@pytest.mark.parametrize("row", [{"input": "2+2?", "output": "4"}, {"question": "2+2?", "answer": 4}])
def test_without_a_chat_template_a_space_separates_question_and_answer(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    found = seen(written(tmp_path / "x.jsonl", row), chat=False)
    assert (found.whole, found.trained) == ("2+2? 4<|im_end|>", " 4<|im_end|>")


CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
ASKED = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"


@pytest.mark.parametrize(
    "row",
    [
        {"query": "2+2?", "response": "4"},
        {"Question": "2+2?", " Answer": "4"},
        {"prompt": "2+2?", "response": 4},
        {"question": "2+2?", "answer": "4", "context": "  ", "system": None, "history": []},
        {"conversation": [{"input": "2+2?", "output": "4"}]},
        {"messages": str(CHAT)},
        {"prompt": CHAT[:1], "completion": "4"},
        {"prompt": json.dumps(CHAT[:1]), "completion": CHAT[1]},
    ],
)
def test_other_names_and_formats_of_a_conversation_give_the_same_conversation(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    found = seen(written(tmp_path / "x.jsonl", row))
    assert (found.whole, found.trained, found.unused) == (ASKED, "4<|im_end|>", [])


def test_unused_columns_are_reported_with_their_rows(tmp_path: Path) -> None:
    rows = [
        {"text": "one", "id": 1, "meta": {"a": None}, "notes": ""},
        {"text": "two", "id": 2, "meta": {"a": "x"}, "label": 3},
    ]
    assert seen(written(tmp_path / "x.jsonl", *rows)).unused == [
        "columns not used: id (2 rows), meta, label (1 row)"
    ]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"template": "{question} {answer}"}, ["n"]),
        ({"columns": {"prompt": "question", "completion": "answer"}}, ["n"]),
        ({"columns": {"text": "answer"}}, ["question", "n"]),
    ],
)
def test_columns_that_a_template_or_column_names_omit_are_reported_too(
    tmp_path: Path, settings: dict[str, Any], left: list[str]
) -> None:
    source = written(tmp_path / "x.jsonl", {"question": "a", "answer": "b", "n": 7})
    assert seen(source, **settings).unused == [f"columns not used: {', '.join(left)} (1 row)"]


def test_a_system_column_that_differs_from_the_conversations_is_reported(tmp_path: Path) -> None:
    told = [{"role": "system", "content": "Be long."}, *CHAT]
    found = seen(written(tmp_path / "x.jsonl", {"messages": told, "system": "Be brief."}))
    assert ["the column `system` is not used" in line for line in found.unused] == [True]
    assert seen(written(tmp_path / "x.jsonl", {"messages": told, "system": "Be long."})).unused == []


def test_a_system_column_that_only_later_rows_have_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "system": "Be brief."}]
    with pytest.raises(DataError, match="line 2: it has a `system`, but the first row has no such column"):
        seen(written(tmp_path / "x.jsonl", *rows))


class TestJudgedAnswers:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "2+2?", "completion": "5", "label": 0},
            {"messages": CHAT, "label": True},
            {"instruction": "2+2?", "output": "5", "label": "false"},
        ],
    )
    def test_they_are_not_trained_as_examples(self, tmp_path: Path, row: dict[str, Any]) -> None:
        with pytest.raises(DataError, match="holds preferences, for --method kto"):
            seen(written(tmp_path / "x.jsonl", row))
        with pytest.raises(DataError, match="line 2: its `label` marks the answer as good or bad"):
            seen(written(tmp_path / "x.jsonl", {**row, "label": None}, row))

    def test_a_file_with_labels_0_and_1_is_for_kto(self) -> None:
        with pytest.raises(DataError, match="holds preferences, for --method kto") as error:
            seen(str(CASES / "kto_int.jsonl"))
        assert 'data.columns = {prompt = "prompt", completion = "completion"}' in str(error.value)
        rows, left = pairs(str(CASES / "kto_int.jsonl"), "kto")
        assert ([row["label"] for row in rows], left) == ([True, False] * 4, [])

    def test_with_the_columns_that_the_error_suggests_all_are_trained(self, tmp_path: Path) -> None:
        source = written(tmp_path / "x.jsonl", {"messages": CHAT, "label": 1})
        found = seen(source, columns={"messages": "messages"})
        assert (found.whole, found.unused) == (ASKED, ["columns not used: label (1 row)"])

    @pytest.mark.parametrize("row", [{"messages": CHAT}, {"query": "2+2?", "response": "4"}])
    def test_kto_accepts_them_in_any_shape(self, tmp_path: Path, row: dict[str, Any]) -> None:
        made = {"prompt": CHAT[:1], "completion": CHAT[1:], "label": True}
        assert pairs(written(tmp_path / "x.jsonl", {**row, "label": 1}), "kto") == ([made], [])


class TestPairs:
    @pytest.mark.parametrize("method", ["dpo", "reward", "kto"])
    @pytest.mark.parametrize(
        ("name", "prompt", "chosen"),
        [
            ("orca.jsonl", ["SYS-TEXT", "QUESTION-TEXT?"], "The lamp is nine."),
            ("alpaca_pref.jsonl", ["INSTR-TEXT?"], "Good answer."),
            ("sys_pref.jsonl", ["SYS-TEXT", "P-TEXT?"], "Good."),
        ],
    )
    def test_the_question_is_the_prompt_and_the_answers_are_complete(
        self, name: str, prompt: list[str], chosen: str, method: str
    ) -> None:
        rows, left = pairs(str(CASES / name), method)
        assert [message["content"] for message in rows[0]["prompt"]] == prompt
        assert rows[0]["chosen"] == [{"role": "assistant", "content": chosen}]
        assert left == []
        plain, _ = pairs(str(CASES / name), method, chat=False)
        assert all(words in plain[0]["prompt"] for words in prompt)
        assert plain[0]["chosen"].lstrip() == chosen

    def test_the_tokenized_text_is_what_is_shown(self) -> None:
        data = prepare(DataConfig(train=str(CASES / "orca.jsonl")), DEMO, None, 1, method="dpo")
        first = "".join(piece.text for piece in view_rows(data.train, DEMO, 1)[0].pieces)
        assert first.index("SYS-TEXT") < first.index("QUESTION-TEXT?") < first.index("The lamp is nine.")

    @pytest.mark.parametrize(
        "row",
        [
            {
                "conversations": [{"from": "human", "value": "2+2?"}],
                "chosen": {"from": "gpt", "value": "4"},
                "rejected": {"from": "gpt", "value": "5"},
            },
            {"messages": CHAT[:1], "chosen": CHAT[1], "rejected": {"role": "assistant", "content": "5"}},
            {"question": "2+2?", "chosen": "4", "rejected": 5},
            {"input": "2+2?", "chosen": "4", "rejected": "5"},
            {"prompt": str(CHAT[:1]), "chosen": "4", "rejected": "5"},
            {"question": "2+2?", "chosen": CHAT, "rejected": [*CHAT[:1], {**CHAT[1], "content": "5"}]},
        ],
    )
    def test_the_question_is_found_in_any_column(self, tmp_path: Path, row: dict[str, Any]) -> None:
        rejected = [{"role": "assistant", "content": "5"}]
        made = {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": rejected}
        assert pairs(written(tmp_path / "x.jsonl", row)) == ([made], [])

    def test_context_history_and_system_come_before_the_answers(self, tmp_path: Path) -> None:
        row = {
            "system_prompt": "SYS",
            "history": [["One?", "1"]],
            "instruction": "Two?",
            "input": "CTX",
            "chosen": "2",
            "rejected": "3",
        }
        [made], left = pairs(written(tmp_path / "x.jsonl", row))
        assert [message["content"] for message in made["prompt"]] == ["SYS", "One?", "1", "Two?\n\nCTX"]
        assert left == []

    def test_a_question_that_the_conversations_do_not_contain_is_reported(self, tmp_path: Path) -> None:
        row = {"prompt": "3+3?", "chosen": CHAT, "rejected": [*CHAT[:1], {**CHAT[1], "content": "5"}]}
        _, left = pairs(written(tmp_path / "x.jsonl", row))
        assert ["the column `prompt` is not used" in what for what in left] == [True]

    def test_unused_columns_are_reported(self, tmp_path: Path) -> None:
        row = {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 9.0, "margin": 1.0}
        assert pairs(written(tmp_path / "x.jsonl", row))[1] == ["score_chosen", "margin"]
        assert pairs(written(tmp_path / "x.jsonl", row), "reward")[1] == ["score_chosen"]
