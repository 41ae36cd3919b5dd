"""SQuAD questions are trained with one of their answers, from its articles and from the Hub's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import prepare
from fmstune.data.rows.squad import SEVERAL
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer

DEMO = load_tokenizer(ModelConfig(path="demo"))
PLACED = {"text": "blue", "answer_start": 11}


def asked(*answers: Any, **more: Any) -> dict[str, Any]:
    return {"id": "1", "question": "Colour?", "answers": list(answers), **more}


def article(*questions: Any) -> dict[str, Any]:
    return {"title": "Sky", "paragraphs": [{"context": "The sky is blue.", "qas": list(questions)}]}


def learnt(path: Path, **options: Any) -> tuple[list[str], list[str], list[str]]:
    """The prompts, the trained answers, and what is reported about the rest."""
    data = prepare(DataConfig(train=str(path), cache=False, **options), DEMO, None, seed=0)
    prompts, answers = [], []
    for row in data.train:
        ids, labels = row["input_ids"], row["labels"]
        trained = sum(label != IGNORED for label in labels)
        prompts.append(DEMO.decode(ids[: len(ids) - trained]))
        answers.append(DEMO.decode([label for label in labels if label != IGNORED]))
    return prompts, answers, data.summary.unused_lines()


@pytest.mark.parametrize("form", ["whole", "lines", "pretty"])
def test_articles_are_read_question_by_question(tmp_path: Path, form: str) -> None:
    articles = [article(asked(PLACED), asked(PLACED, question="Other?")), article(asked(PLACED))]
    path = tmp_path / "train-v1.1.json"
    if form == "lines":
        path.write_text("".join(f"{json.dumps(each)}\n" for each in articles))
    else:
        path.write_text(
            json.dumps({"version": "1.1", "data": articles}, indent=1 if form == "pretty" else None)
        )
    prompts, answers, said = learnt(path)
    assert answers == ["blue<|im_end|>"] * 3
    assert "Colour?\n\nThe sky is blue." in prompts[0]
    assert "Other?\n\nThe sky is blue." in prompts[1]
    assert said == ["columns not used: answers.answer_start, title, id (3 rows)"]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["blue"], "answer_start": [11]},
        {"text": ["blue", "blue"], "answer_start": [11, 11]},
        [PLACED],
        [{"text": "blue"}],
        ["blue"],
        json.dumps({"text": ["blue"], "answer_start": [11]}),
    ],
)
def test_answers_in_any_format_are_trained(tmp_path: Path, answers: Any) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"question": "Colour?", "answers": answers}) + "\n")
    _, found, said = learnt(path)
    assert found == ["blue<|im_end|>"]
    placed = "answer_start" in json.dumps(answers)
    assert said == (["columns not used: answers.answer_start (1 row)"] if placed else [])


def test_answers_in_a_configured_column_are_trained(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"question": "Colour?", "answers": [PLACED]}) + "\n")
    _, (found,), _ = learnt(path, columns={"prompt": "question", "completion": "answers"})
    assert found.strip() == "blue<|im_end|>"


def test_of_different_answers_the_first_is_trained_and_that_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        json.dumps({"question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}) + "\n"
    )
    _, answers, said = learnt(path)
    assert answers == ["a<|im_end|>"]
    assert any(SEVERAL in line for line in said)


def test_a_question_without_an_answer_is_refused_with_its_location_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps({"data": [article(asked(PLACED), asked(is_impossible=True))]}))
    with pytest.raises(DataError, match="row 1, question 2: its question has no answer in `answers`"):
        learnt(path)
    assert len(learnt(path, skip_bad_rows=True)[1]) == 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_articles_may_be_lines_of_a_file_even_a_single_one(tmp_path: Path, count: int, suffix: str) -> None:
    path = tmp_path / f"lines.{suffix}"
    path.write_text(f"{json.dumps(article(asked(PLACED)))}\n" * count)
    prompts, answers, _ = learnt(path)
    assert (len(prompts), len(answers)) == (count, count)
    assert "blue" in answers[0]


@pytest.mark.parametrize("answers", [[], ["a", "b"], [PLACED]])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "question": "q"},
        {"text": "hello"},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a"},
        {"input_ids": [5, 6, 7], "prompt": "q"},
    ],
)
def test_answers_next_to_rows_of_another_shape_are_an_ordinary_column(
    tmp_path: Path, row: dict[str, Any], answers: list[Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**row, "answers": answers}))
    _, trained, said = learnt(path)
    path.write_text(json.dumps(row))
    assert trained == learnt(path)[1]
    lines = "\n".join(said)
    assert SEVERAL not in lines
    assert "answer_start" not in lines
    columns = [line for line in said if line.startswith("columns not used")]
    assert any("answers" in line for line in columns) == bool(answers)
