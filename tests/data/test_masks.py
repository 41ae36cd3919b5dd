"""Parts of an answer that are not to be learnt are not, and all others are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, DataSource, ModelConfig
from fmstune.data.prepare import prepare
from fmstune.data.rows.reader import load_rows
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer

DEMO = load_tokenizer(ModelConfig(path="demo"))
ASK = {"role": "user", "content": "Hi"}
in_tmp = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Texts of which a template removes no blanks, and no part is empty.
PARTS = st.lists(
    st.tuples(st.text("ab .,\n", min_size=1, max_size=6), st.booleans()), min_size=1, max_size=5
).filter(lambda parts: "".join(text for text, _ in parts).strip() != "")


def rows_of(folder: Path, *rows: dict[str, Any], method: str = "sft", **options: Any) -> list[dict[str, Any]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = DataConfig(train=(DataSource(str(path)),), cache=False, **options)
    return list(prepare(config, DEMO, None, seed=0, method=method).train)


def learnt(row: dict[str, Any]) -> str:
    """The trained tokens."""
    return str(DEMO.decode([label for label in row["labels"] if label != IGNORED]))


def expected(text: str, begins: int, chars: list[bool], ends: int) -> list[bool]:
    """Whether each token is learnt: it is in the answer, and each of its characters is learnt."""
    offsets = DEMO(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    wanted = [True] * len(text)
    wanted[:begins] = [False] * begins
    wanted[begins : begins + len(chars)] = chars
    wanted[ends:] = [False] * (len(text) - ends)
    return [all(wanted[start:end]) for start, end in offsets]


@pytest.mark.parametrize("name", ["train", "weight", "detail"])
@given(parts=PARTS)
@in_tmp
def test_exactly_the_tokens_of_learnt_parts_are_learnt(
    tmp_path: Path, name: str, parts: list[tuple[str, bool]]
) -> None:
    content = "".join(text for text, _ in parts)
    chars = [learns for text, learns in parts for _ in text]
    question = {"role": "user", "content": "Hi"}
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    if name == "detail":
        stops = [sum(len(text) for text, _ in parts[: at + 1]) for at in range(len(parts))]
        answer["train_detail"] = [
            {"begin_offset": end - len(text), "end_offset": end - 1, "train": learns}
            for (text, learns), end in zip(parts, stops, strict=True)
        ]
    else:
        flags = {True: True, False: False} if name == "train" else {True: 1, False: 0}
        answer["content"] = [{"type": "text", "text": text, name: flags[learns]} for text, learns in parts]
    (row,) = rows_of(tmp_path, {"messages": [question, answer]})
    text = str(DEMO.apply_chat_template([question, {**answer, "content": content}], tokenize=False))
    begins = text.rindex(str(content))
    ends = text.index("<|im_end|>", begins) + len("<|im_end|>")
    wanted = expected(text[:ends], begins, chars, ends)
    if row["input_ids"] == DEMO(text[:ends], add_special_tokens=False)["input_ids"]:
        assert [label != IGNORED for label in row["labels"]] == wanted
    else:  # the prompt and its answer share a token, and are tokenised separately
        assert DEMO.decode(row["input_ids"]) == text[:ends]


def test_masked_parts_of_earlier_answers_are_context(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "no", "train": False}, {"type": "text", "text": " yes"}]
    ask = {"role": "user", "content": "Hi"}
    row = {
        "messages": [
            ask,
            {"role": "assistant", "content": parts},
            ask,
            {"role": "assistant", "content": "ok"},
        ]
    }
    for history in ("split", "template"):
        (one,) = rows_of(tmp_path, row, history=history)
        assert learnt(one) == " yes<|im_end|>ok<|im_end|>"
    (whole,) = rows_of(tmp_path, row, train_on="all")
    assert "no" not in learnt(whole)
    assert " yes" in learnt(whole)


@pytest.mark.parametrize(("question", "said"), [("", True), (" ", True), ("Hi", False)])
def test_an_answer_to_an_empty_question_is_learnt_and_reported(
    tmp_path: Path, question: str, *, said: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": question, "answer": "yes"}))
    config = DataConfig(train=(DataSource(str(path)),), cache=False)
    found = prepare(config, DEMO, None, seed=0)
    assert learnt(found.train[0]).startswith("yes")
    told = [each.what for each in found.summary.unused]
    assert told == (["an answer to an empty question is learnt"] if said else [])


def test_a_token_that_two_parts_share_is_reported(tmp_path: Path) -> None:
    def remarks(*texts: str) -> list[str]:
        parts = [{"type": "text", "text": texts[0], "train": False}, {"type": "text", "text": texts[1]}]
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"messages": [ASK, {"role": "assistant", "content": parts}]}))
        config = DataConfig(train=(DataSource(str(path)),), cache=False)
        return [each.what for each in prepare(config, DEMO, None, seed=0).summary.unused]

    assert remarks("a lamp", " costs") == []
    assert ["is not, as it also contains" in what for what in remarks("a lamp ", "costs")] == [True]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            {"content": [{"type": "text", "text": "a", "train": "maybe"}]},
            "has a part with 'maybe' as its `train`",
        ),
        ({"content": [{"type": "text", "text": "a", "weight": 0.5}]}, "has a part with 0.5 as its `weight`"),
        (
            {"content": "a", "train_detail": [{"begin_offset": 3}]},
            "an item is {begin_offset, end_offset, train}",
        ),
        (
            {"content": "Yes.", "train_detail": [{"begin_offset": 2, "end_offset": 5, "train": False}]},
            "has the characters 2 to 5 in its `train_detail`, but its text has 4",
        ),
        (
            {"content": [{"type": "text", "text": "<think>\nx\n</think>\na", "train": False}]},
            "put the reasoning into `reasoning_content`",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused(tmp_path: Path, answer: dict[str, Any], says: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", **answer}]
    with pytest.raises(DataError) as refused:
        rows_of(tmp_path, {"messages": messages})
    assert says in str(refused.value)


def test_the_parts_of_llama_factory_are_read(tmp_path: Path) -> None:
    call = '{"name": "f", "arguments": {"x": 1}}'
    said = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "so"}]
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "Hi"}], "loss_weight": 0.0},
            {
                "role": "assistant",
                "content": [*said, {"type": "tool_call", "value": call}],
                "loss_weight": 0.0,
            },
            {"role": "tool", "content": [{"type": "text", "value": "7"}]},
            {"role": "assistant", "content": said, "loss_weight": 1.0},
        ],
        "tools": '[{"name": "f", "parameters": {}}]',
    }
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    user, called, result, last = load_rows(str(path)).rows[0]["messages"]
    assert user == {"role": "user", "content": "Hi", "weight": 0.0}
    assert called["content"] == "so"
    assert called["reasoning_content"] == "hm"
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert called["weight"] == 0.0
    assert result["content"] == "7"
    assert last["weight"] == 1.0


def test_the_pairs_of_llama_factory_are_read(tmp_path: Path) -> None:
    def side(answer: str) -> list[dict[str, Any]]:
        ask = {"role": "user", "content": [{"type": "text", "value": "Hi"}], "loss_weight": 0.0}
        return [
            ask,
            {"role": "assistant", "content": [{"type": "text", "value": answer}], "loss_weight": 1.0},
        ]

    row = {"chosen_messages": side("yes"), "rejected_messages": side("no")}
    (pair,) = rows_of(tmp_path, row, method="dpo")
    assert DEMO.decode(pair["chosen_ids"]).startswith("yes")
    assert DEMO.decode(pair["rejected_ids"]).startswith("no")


SEGMENTS = st.lists(st.tuples(st.text("ab .,\n<", max_size=6), st.booleans()), min_size=1, max_size=5).filter(
    # The first token is predicted from nothing, and not learnt.
    lambda parts: any(
        text.strip() and learns and any(before for before, _ in parts[:at])
        for at, (text, learns) in enumerate(parts)
    )
)


@given(parts=SEGMENTS, rows=st.integers(1, 2))
@in_tmp
def test_exactly_the_segments_with_a_label_are_learnt(
    tmp_path: Path, parts: list[tuple[str, bool]], rows: int
) -> None:
    row = {"segments": [{"label": learns, "text": text} for text, learns in parts]}
    found = rows_of(tmp_path, *[row] * rows)
    assert len(found) == rows
    text = "".join(text for text, _ in parts)
    assert DEMO.decode(found[0]["input_ids"]) == text  # nothing is added
    chars = [learns for text, learns in parts for _ in text]
    at = 0
    for token, label in zip(found[0]["input_ids"], found[0]["labels"], strict=True):
        covered = chars[at : at + len(DEMO.decode([token]))]
        assert (label != IGNORED) == (any(covered) and at > 0)
        at += len(covered)
