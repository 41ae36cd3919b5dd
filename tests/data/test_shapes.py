"""Each shape of rows is recognised, and the loss covers what the model has to generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.rows.messages import read_messages
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer

END = "<|im_end|>"
DEMO = load_tokenizer(ModelConfig(path="demo"))
BARE = load_tokenizer(ModelConfig(path="demo"))
BARE.chat_template = None


def prepared(
    tmp_path: Path, *rows: Any, using: PreTrainedTokenizerBase = DEMO, **settings: Any
) -> PreparedData:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return prepare(DataConfig(train=str(path), **settings), using, None, seed=1)


def shown(data: PreparedData, using: PreTrainedTokenizerBase = DEMO) -> tuple[str, str]:
    """The first row as the model sees it, and the trained part of it."""
    row = data.train[0]
    return using.decode(row["input_ids"]), using.decode([t for t in row["labels"] if t != IGNORED])


def refused(tmp_path: Path, *rows: Any, using: PreTrainedTokenizerBase = DEMO, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, *rows, using=using, **settings)
    return str(caught.value)


CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SEEN = f"<|im_start|>user\n2+2?{END}\n<|im_start|>assistant\n4{END}"
SYSTEM = f"<|im_start|>system\nBe brief.{END}\n"


@pytest.mark.parametrize(
    ("row", "name", "seen"),
    [
        ({"messages": CHAT}, "messages", SEEN),
        ({"messages": json.dumps(CHAT)}, "messages", SEEN),
        ({"messages": CHAT, "system": "Be brief."}, "messages", SYSTEM + SEEN),
        ({"conversations": CHAT}, "conversations", SEEN),
        (
            {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            "conversations (from/value)",
            SEEN,
        ),
        (
            {
                "system": "Be brief.",
                "conversations": [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": "4"}],
            },
            "conversations (from/value)",
            SYSTEM + SEEN,
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "2+2?"},
                    {"from": "gpt", "value": "4"},
                ]
            },
            "conversations (from/value)",
            SYSTEM + SEEN,
        ),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "prompt/completion as messages", SEEN),
        (
            {"instruction": "2+2?", "input": "", "output": "4", "text": "all of it"},
            "instruction/input/output as messages",
            SEEN,
        ),
        ({"instruction": "2+2?", "output": "4"}, "instruction/input/output as messages", SEEN),
    ],
)
def test_in_chats_of_any_shape_the_answer_is_trained(
    tmp_path: Path, row: dict[str, Any], name: str, seen: str
) -> None:
    data = prepared(tmp_path, row)
    assert shown(data) == (seen, f"4{END}")
    assert f"({name})" in data.summary.line()


@pytest.mark.parametrize(
    ("instruction", "question"), [("Add.", "Add.\n\n2 and 2"), ("", "2 and 2"), (" ", "2 and 2")]
)
def test_the_input_of_an_instruction_is_part_of_the_question(
    tmp_path: Path, instruction: str, question: str
) -> None:
    row = {"instruction": instruction, "input": "2 and 2", "output": "4"}
    seen, trained = shown(prepared(tmp_path, row))
    assert (f"user\n{question}{END}" in seen, trained) == (True, f"4{END}")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Add.", "input": "2 and 2"}, "### Input:\n2 and 2\n\n### Response:\n"),
        ({"instruction": "2+2?", "input": None}, "### Instruction:\n2+2?\n\n### Response:\n"),
    ],
)
def test_instructions_without_a_chat_template_use_the_alpaca_format(
    tmp_path: Path, row: dict[str, Any], prompt: str
) -> None:
    data = prepared(tmp_path, {**row, "output": "4"}, using=BARE)
    seen, trained = shown(data)
    assert seen.startswith("Below is an instruction that describes a task")
    assert seen.endswith(f"{prompt}4{END}")
    assert trained == f"4{END}"
    assert "(instruction/input/output)" in data.summary.line()


def test_texts_are_trained_in_full_and_prompts_are_not(tmp_path: Path) -> None:
    seen, trained = shown(prepared(tmp_path, {"text": "one two"}))
    assert seen == f"one two{END}"
    assert seen.endswith(trained)
    assert " two" in trained  # all but the first token, which nothing precedes
    row = {"prompt": "Q: 2+2?\nA:", "completion": " 4"}
    assert shown(prepared(tmp_path, row)) == (f"Q: 2+2?\nA: 4{END}", f" 4{END}")


def test_function_calls_are_trained_and_their_results_are_not(tmp_path: Path) -> None:
    template = (
        "{%- for m in messages -%}{{ m.role + ': ' + m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function | tojson }}{% endif %}{{ '\\n' }}{%- endfor -%}"
        "{{ 'assistant: ' if add_generation_prompt }}"
    )
    using = load_tokenizer(ModelConfig(path="demo"))
    using.chat_template = template
    call = '{"name": "weather", "arguments": {"in": "Graz"}}'
    turns = [("human", "Rain?"), ("function_call", call), ("observation", "yes"), ("gpt", "It rains.")]
    row = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}
    _, trained = shown(prepared(tmp_path, row, using=using), using)
    assert json.loads(trained.partition("\n")[0]) == json.loads(call)
    assert trained.endswith("}\nIt rains.\n")


@pytest.mark.parametrize("arguments", ["", " ", None, "{}", {}])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    (read,) = read_messages(messages, "line 1", "messages")
    assert read["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


class TestTokens:
    IDS = DEMO("one two three")["input_ids"]

    def test_they_are_trained_as_their_labels_say(self, tmp_path: Path) -> None:
        labels = [IGNORED] * (len(self.IDS) - 1) + self.IDS[-1:]
        data = prepared(tmp_path, {"input_ids": self.IDS, "labels": labels})
        assert data.train[0] == {"input_ids": self.IDS, "labels": labels}
        assert "(input_ids/labels)" in data.summary.line()

    def test_without_labels_all_are_trained_and_padding_is_removed(self, tmp_path: Path) -> None:
        row = {"input_ids": [0, 0, *self.IDS], "attention_mask": [0, 0, *[1] * len(self.IDS)]}
        data = prepared(tmp_path, row)
        assert data.train[0] == {"input_ids": self.IDS, "labels": [IGNORED, *self.IDS[1:]]}

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"input_ids": [5, 6], "labels": [5]}, "there are 2 `input_ids` and 1 `labels`"),
            ({"input_ids": [5, 10**6], "labels": [5, 6]}, "the token 1000000 is not in the model's vocab"),
            ({"input_ids": [5, -100], "labels": [5, 6]}, "the token -100 is not in the model's vocab"),
            ({"input_ids": [5, 6], "labels": [5, -7]}, "the token -7 is not in the model's vocabulary"),
            ({"input_ids": [5, 6.5], "labels": [5, 6]}, "`input_ids` contains 6.5"),
            ({"input_ids": [5, True], "labels": [5, 6]}, "`input_ids` contains True"),
            ({"input_ids": "5 6", "labels": [5, 6]}, "`input_ids` is a string"),
            ({"input_ids": [5, 6], "labels": [-100, -100]}, "has no token to train on"),
        ],
    )
    def test_errors_in_them_are_reported_with_the_row(
        self, tmp_path: Path, row: dict[str, Any], reason: str
    ) -> None:
        told = refused(tmp_path, {"input_ids": [5, 6], "labels": [5, 6]}, row)
        assert f"rows.jsonl line 2: {reason}" in told.replace("this row ", "")


ASKED = {"question": "2+2?", "answer": "4", "n": 7}


class TestTemplate:
    @pytest.mark.parametrize(
        ("template", "seen", "trained"),
        [
            ("### Q: {question}\n### A: {answer}", f"### Q: 2+2?\n### A: 4{END}", f" 4{END}"),
            (r"### Q: {question}\n### A: {answer}", f"### Q: 2+2?\n### A: 4{END}", f" 4{END}"),
            ("{question} {answer} !!", f"2+2? 4 !!{END}", f" 4 !!{END}"),
            ("{{{n}}} {question}={answer}", f"{{7}} 2+2?=4{END}", f"4{END}"),
        ],
    )
    def test_the_last_column_and_what_follows_it_are_trained(
        self, tmp_path: Path, template: str, seen: str, trained: str
    ) -> None:
        data = prepared(tmp_path, ASKED, template=template)
        assert shown(data) == (seen, trained)
        assert "(template)" in data.summary.line()

    def test_a_missing_column_is_reported_with_the_existing_ones(self, tmp_path: Path) -> None:
        told = refused(tmp_path, ASKED, template="{question} {anwser}")
        assert "line 1: the template names the column 'anwser'; the columns are question, answer, n." in told

    def test_a_column_that_is_no_string_is_reported(self, tmp_path: Path) -> None:
        told = refused(tmp_path, {"question": [1], "answer": "4"}, template="{question} {answer}")
        assert "`question`, which the template names, is a list" in told


class TestColumns:
    @pytest.mark.parametrize(
        ("row", "columns", "trained"),
        [
            ({"q": "2+2?", "a": " 4"}, {"prompt": "q", "completion": "a"}, f" 4{END}"),
            ({"prompt": "2+2?", "a": " 4"}, {"completion": "a"}, f" 4{END}"),
            ({"chat": CHAT}, {"messages": "chat"}, f"4{END}"),
            ({"q": "2+2?", "a": "4", "messages": []}, {"instruction": "q", "output": "a"}, f"4{END}"),
            (
                {"prompt": "2+2?", "chosen": " 4", "rejected": "5"},
                {"prompt": "prompt", "completion": "chosen"},
                f" 4{END}",
            ),
        ],
    )
    def test_they_are_read_under_our_names(
        self, tmp_path: Path, row: dict[str, Any], columns: dict[str, str], trained: str
    ) -> None:
        assert shown(prepared(tmp_path, row, columns=columns))[1] == trained

    def test_a_missing_one_is_reported_with_the_existing_ones(self, tmp_path: Path) -> None:
        told = refused(tmp_path, {"q": "a", "a": "b"}, columns={"prompt": "q", "completion": "answer"})
        assert "there is no column 'answer', which data.columns maps to `completion`" in told
        assert "the columns are q, a." in told


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "holds preferences, for --method dpo"),
        ({"chosen": CHAT, "rejected": CHAT}, "holds preferences, for --method dpo"),
        ({"prompt": "a", "completion": "b", "label": False}, "holds preferences, for --method kto"),
    ],
)
def test_preferences_are_not_mistaken_for_examples(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    assert says in refused(tmp_path, row)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"conversations": [{"from": "narrator", "value": "a"}]},
            "message 1 of `conversations` has the role 'narr",
        ),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "has the role ['gpt']"),
        ({"conversations": [{"from": "gpt", "value": 7}]}, "message 1 of `conversations` has no text as"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "no message of `conversations` is the assist"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "has a tool call that is not JSON"),
        ({"instruction": "a", "output": ["b"]}, "`output` is a list, where a text is needed"),
        ({"instruction": "a", "input": [7], "output": "b"}, "`input` is a list, where a text is needed"),
    ],
)
def test_an_invalid_row_of_a_known_shape_is_reported(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    told = refused(tmp_path, row)
    assert "rows.jsonl line 1" in told
    assert says in told
