"""Preference rows of every format are converted to one, and errors in a row are reported with its
location."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, DataSource, ModelConfig
from fmstune.data.columns import SPEAKERS
from fmstune.data.prepare import prepare
from fmstune.data.rendering.answer import Writer
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.preferences import recognise_preferences
from fmstune.data.rows.reader import Reader, Row
from fmstune.data.rows.unused import Unused
from fmstune.data.tokens.preferences import AnswerEncoder
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(source: str, method: str) -> list[Row]:
    return [row for _, row in Reader(DataSource(source), "train", DataConfig(), BadRows(), method=method)]


def one(row: dict[str, Any], method: str = "dpo") -> Row:
    return recognise_preferences(row, "line 1", method).read(row, "line 1", Unused(""))


TOKENIZER = load_tokenizer(ModelConfig(path="demo"))
PAIR = {"prompt": [user("Why?")], "chosen": [bot("So.")], "rejected": [bot("No.")]}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"chosen": [user("Why?"), bot("So.")], "rejected": [user("Why?"), bot("No.")]},
        {"prompt": [user("Why?")], "chosen": "So.", "rejected": "No."},
        {"prompt": "Why?", "chosen": [bot("So.")], "rejected": [bot("No.")]},
        {"prompt": "Why?", "chosen": [user("Why?"), bot("So.")], "rejected": [user("Why?"), bot("No.")]},
        {
            "prompt": [user("Why?")],
            "chosen": [user("Why?"), bot("So.")],
            "rejected": [user("Why?"), bot("No.")],
        },
        {**PAIR, "messages": [user("Why?"), bot("So.")], "score_chosen": 9.0},
    ],
)
def test_every_format_of_a_chat_pair_gives_the_same_pair(row: dict[str, Any]) -> None:
    assert one(row) == PAIR


@pytest.mark.parametrize("speaker", [each for each, role in SPEAKERS.items() if role != "assistant"])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_conversation_that_another_than_the_assistant_ends_is_the_prompt(speaker: str, column: str) -> None:
    call = {"from": "function_call", "value": '{"name": "look", "arguments": {}}'}
    row = {column: [user("Why?"), call, {"from": speaker, "value": "x"}]}
    found = one({**row, "chosen": bot("So."), "rejected": bot("No.")})
    assert [message["content"] for message in found["prompt"]] == ["Why?", "", "x"]
    assert (found["chosen"], found["rejected"]) == (PAIR["chosen"], PAIR["rejected"])


BARE = {key: PAIR[key] for key in ("chosen", "rejected")}
WHOLE = {key: [user("Why?"), *PAIR[key]] for key in BARE}
TEXTS = {"chosen": "So.", "rejected": "No."}


@pytest.mark.parametrize(
    "rows",
    [
        [BARE | {"messages": [user("Why?"), bot("So.")]}],
        [TEXTS | {"messages": [user("Why?"), bot("So.")]}],
        [WHOLE, PAIR],
        [WHOLE | {"messages": WHOLE["chosen"]}, BARE | {"messages": [user("Why?")]}],
        [{"chosen": "Why? So.", "rejected": "Why? No."}, TEXTS | {"prompt": "Why?"}],
    ],
)
def test_a_pair_whose_question_would_not_be_learnt_is_refused(rows: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"line {len(rows)}: its answers follow no question"):
        read(write(tmp_path / "x.jsonl", *rows), "dpo")


def test_a_first_row_without_a_question_is_skipped_alone(tmp_path: Path) -> None:
    source, bad = write(tmp_path / "x.jsonl", PAIR | {"prompt": None}, PAIR, PAIR), BadRows(True)
    assert len(list(Reader(DataSource(source), "train", DataConfig(), bad, method="dpo"))) == 2
    assert bad.first[0].endswith(
        "follow no question, and its `prompt` is empty; put the question into `prompt`, in every row."
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("\n\nHuman: Hi\n\nAssistant: Yes", "\n\nHuman: Hi\n\nAssistant: No", "\n\nHuman: Hi\n\nAssistant:"),
        ("Q?\nblue", "Q?\nblack", "Q?\n"),
        ("yes ", "no", ""),
        ("say yes", "say yes sir", "say"),
        ("x", "xy", ""),
    ],
)
def test_the_common_prompt_of_two_texts_ends_before_the_word_where_they_diverge(
    chosen: str, rejected: str, prompt: str
) -> None:
    made = one({"chosen": chosen, "rejected": rejected})
    assert made["prompt"] == prompt
    assert (made["prompt"] + made["chosen"], made["prompt"] + made["rejected"]) == (chosen, rejected)


words = st.text(alphabet="ab \n", min_size=1, max_size=12)


@given(words, words)
def test_splitting_two_texts_never_changes_them(chosen: str, rejected: str) -> None:
    if chosen != rejected:
        made = one({"chosen": chosen, "rejected": rejected})
        assert made["chosen"]
        assert made["rejected"]
        assert (made["prompt"] + made["chosen"], made["prompt"] + made["rejected"]) == (chosen, rejected)


def test_texts_with_a_prompt_stay_unchanged() -> None:
    row = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    assert one(row, "reward") == row


@pytest.mark.parametrize(
    ("label", "meant"),
    [(True, True), (0, False), (1.0, True), ("true", True), ("False", False), (" 1 ", True), ("0.0", False)],
)
def test_a_label_is_parsed_in_its_common_spellings(label: Any, meant: bool) -> None:
    assert one({"prompt": "a", "completion": "b", "label": label}, "kto")["label"] is meant


def test_a_labelled_plain_text_answer_follows_a_prompt_of_messages() -> None:
    made = one({"prompt": [user("Why?")], "completion": "So.", "label": True}, "kto")
    assert made == {"prompt": [user("Why?")], "completion": [bot("So.")], "label": True}
    repeated = {"prompt": [user("Why?")], "completion": [user("Why?"), bot("So.")], "label": True}
    assert one(repeated, "kto") == made


def test_tables_are_read_as_well(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    with open(tmp_path / "x.csv", "w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion", "label"], ["a", "b", "true"], ["c", "d", "0"]])
    assert [row["label"] for row in read(str(tmp_path / "x.csv"), "kto")] == [True, False]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR]), tmp_path / "x.parquet")
    assert read(str(tmp_path / "x.parquet"), "dpo") == [PAIR]


def test_pairs_with_identical_answers_are_dropped_and_counted(tmp_path: Path) -> None:
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    other = {**same, "rejected": "c"}
    config = DataConfig(train=write(tmp_path / "x.jsonl", same, other, same))
    for method in ("dpo", "reward", "kto"):
        made = prepare(config, TOKENIZER, None, 1, method=method)
        assert set(made.places) == {f"{tmp_path}/x.jsonl line 2"}
        assert made.summary.same == 2
    with pytest.raises(DataError, match="of its 2 rows, each has the same `chosen` and `rejected`"):
        prepare(DataConfig(train=write(tmp_path / "x.jsonl", same, same)), TOKENIZER, None, 1, method="dpo")


@pytest.mark.parametrize("method", ["dpo", "reward", "kto"])
def test_pairs_that_differ_only_in_what_the_template_omits_are_identical(tmp_path: Path, method: str) -> None:
    using = load_tokenizer(ModelConfig(path="demo"))
    using.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    pair = {"prompt": [user("q")], "chosen": [bot("a") | {"reasoning_content": "good"}]}
    same = pair | {"rejected": [bot("a") | {"reasoning_content": "bad"}]}
    config = DataConfig(train=write(tmp_path / "x.jsonl", same, pair | {"rejected": [bot("b")]}))
    made = prepare(config, using, None, 1, method=method)
    assert set(made.places) == {f"{tmp_path}/x.jsonl line 2"}
    assert made.summary.same == 1


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
def test_pairs_that_are_identical_after_truncation_are_not_trained(tmp_path: Path, truncation: str) -> None:
    ends = ("b", "c") if truncation == "keep_start" else ("", "")
    begins = ("b", "c") if truncation == "keep_end" else ("", "")
    good, bad = (f"{begin}{' x y z' * 20}{end}" for begin, end in zip(begins, ends, strict=True))
    cut = {"prompt": "a", "chosen": good, "rejected": bad}
    rows = write(tmp_path / "x.jsonl", cut, {"prompt": "a", "chosen": "b", "rejected": "c"})
    writer = Writer(TOKENIZER)
    encoder = AnswerEncoder(writer, "dpo", 16, keep_end=truncation == "keep_end")
    reader = Reader(DataSource(rows), "train", DataConfig(), BadRows(), method="dpo")
    assert [row.trained > 0 for row in encoder.rows(reader)] == [False, True]


@pytest.mark.parametrize("method", ["dpo", "reward", "kto"])
def test_a_list_of_answers_is_refused_with_what_is_needed(method: str, tmp_path: Path) -> None:
    rows = write(tmp_path / "x.jsonl", {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]})
    with pytest.raises(DataError, match="`rejected` is a list of 2 strings; it takes a single one"):
        read(rows, method)


def test_a_reward_pair_may_diverge_at_a_question_and_have_a_margin() -> None:
    row = {"chosen": [user("a"), bot("b")], "rejected": [user("c"), bot("d")], "margin": 2}
    made = one(row, "reward")
    assert (made["prompt"], made["margin"]) == ([], 2.0)
    assert "margin" not in one({**PAIR, "margin": 2}, "dpo")


@pytest.mark.parametrize(
    ("method", "row", "message"),
    [
        ("dpo", {"messages": [user("a"), bot("b")]}, "columns are messages. Such rows are for --method sft."),
        ("dpo", {"prompt": "a", "completion": "b"}, "rows have `chosen` and `rejected`, .* for --method sft"),
        ("reward", {"prompt": "a", "completion": "b", "label": 1}, "Such rows are for --method kto."),
        (
            "dpo",
            {"instruction": "a", "input": "", "output": ["b", "c"]},
            "If the two texts in `output` are its answers, put the better one into `chosen`, and the other ",
        ),
        (
            "orpo",
            {"query": "a", "incorrect_answer": "b", "correct_answer": "c"},
            'data.columns={query="query", chosen="correct_answer", rejected="incorrect_answer"}',
        ),
        (
            "dpo",
            {"instruction": "a", "input": "b", "accepted": "c", "rejected": "d"},
            '{instruction="instruction", input="input", chosen="accepted", rejected="rejected"}',
        ),
        ("dpo", {"prompt": "a", "completion": "b", "tags": ["c", "d"]}, "Such rows are for --method sft."),
        ("dpo", {"good": "a", "bad": "b"}, 'data.columns={chosen="good", rejected="bad"}'),
        ("kto", {"prompt": "a", "completion": "b"}, "`label` .true or false., .* are prompt, completion."),
        ("dpo", {"question": "a", "chosen": "b"}, "the columns are question, chosen.$"),
        ("dpo", {}, "the columns are none."),
        ("dpo", {**PAIR, "rejected": "No."}, "one of `chosen` and `rejected` is a text, the other messages."),
        ("dpo", {**PAIR, "chosen": True}, "`chosen` is a boolean; it takes a string, or a list of messages."),
        ("dpo", {**PAIR, "chosen": []}, "`chosen` takes a list of messages with at least one"),
        ("dpo", {**PAIR, "chosen": ["So."]}, "`chosen` is a list of 1 string; it takes a single one"),
        ("dpo", {**PAIR, "chosen": [{"role": "me", "content": "x"}]}, "has the role 'me'; roles are"),
        ("dpo", {**PAIR, "prompt": {"a": 1}}, "`prompt` is an object; it takes a string"),
        ("dpo", {**PAIR, "chosen": [bot("So."), user("And?")]}, "`chosen` does not end with a message of"),
        ("dpo", {**PAIR, "chosen": [user("Why?")]}, "`chosen` does not end with a message of the assistant"),
        (
            "dpo",
            {"chosen": [user("a"), bot("b")], "rejected": [user("c"), bot("d")]},
            "diverge at message 1, which is not the assistant's in both",
        ),
        ("dpo", {**PAIR, "tools": "no"}, "`tools` takes a list of JSON schemas"),
        ("reward", {**PAIR, "margin": "much"}, "`margin` takes a number"),
        ("kto", {"prompt": "a", "completion": "b", "label": 0.7}, "`label` is 0.7; use true for a good"),
        ("kto", {"prompt": [user("a")], "completion": [user("b")], "label": 1}, "`completion` does not end"),
        ("dpo", {"prompt": "a", "chosen": "b \ud83d", "rejected": "c"}, "unpaired surrogate .'.ud83d'."),
    ],
)
def test_an_invalid_row_is_reported_with_its_location_and_what_is_needed(
    method: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(write(tmp_path / "x.jsonl", row), method)
    assert str(error.value).startswith(f"{tmp_path}/x.jsonl line 1: ")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (PAIR, {"prompt": "a", "chosen": "b"}, "line 2: there is no `rejected`; the first row has it"),
        (
            {**PAIR, "margin": 1},
            PAIR,
            "line 2: it has no `margin`; give it to all rows or to none",
        ),
        (
            PAIR,
            {**PAIR, "margin": 1},
            "line 2: it has a `margin`, but the first row has none; give it to all rows or to none",
        ),
        (
            PAIR,
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "answers are texts, those of the first row mes",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            PAIR,
            "answers are messages, those of the first row",
        ),
    ],
)
def test_rows_that_differ_from_the_first_are_reported(
    first: dict[str, Any], second: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "x.jsonl", first, second), "reward" if "margin" in message else "dpo")


def test_sft_on_pairs_suggests_the_preference_methods(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", PAIR)
    with pytest.raises(DataError, match="holds preferences, for --method dpo, kto, reward or orpo"):
        prepare(DataConfig(train=source), TOKENIZER, None, 1)


@given(
    st.dictionaries(
        st.sampled_from(
            ["prompt", "chosen", "rejected", "completion", "label", "tools", "margin", "messages"]
        ),
        st.recursive(
            st.none()
            | st.booleans()
            | st.floats()
            | st.text(max_size=3)
            | st.sampled_from(["user", "assistant"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), inner, max_size=3)
            ),
            max_leaves=8,
        ),
    ),
    st.sampled_from(["dpo", "kto", "reward"]),
)
def test_any_row_is_read_or_refused(row: dict[str, Any], method: str) -> None:
    with contextlib.suppress(DataError):
        made = one(row, method)
        assert isinstance(made["prompt"], (str, list))
