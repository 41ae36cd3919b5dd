"""Sources with weights are mixed in these proportions, repeating smaller ones; others are concatenated."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, DataSource, ModelConfig
from fmstune.data.mixture import numbers_of_mixture, rows_of_sources
from fmstune.data.prepare import PreparedData, prepare
from fmstune.errors import ConfigError, DataError
from fmstune.models.load import load_tokenizer

TOKENIZER = load_tokenizer(ModelConfig(path="demo"))


def write(path: Path, count: int) -> str:
    path.write_text("".join(f"{json.dumps({'text': f'{path.stem} {n}'})}\n" for n in range(count)))
    return str(path)


def prepared(*sources: DataSource, seed: int = 1, **settings: float) -> PreparedData:
    return prepare(DataConfig(train=sources, **settings), TOKENIZER, None, seed)


def texts(data: PreparedData) -> list[str]:
    return [TOKENIZER.decode(ids).removesuffix("<|im_end|>") for ids in data.train["input_ids"]]


def test_small_sources_are_repeated_until_the_proportions_match_the_weights(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 10)
    data = prepared(DataSource(a, weight=3), DataSource(b, weight=2))
    found = Counter(texts(data))
    assert found == {f"a {n}": 1 for n in range(30)} | {f"b {n}": 2 for n in range(10)}
    assert data.summary.line().startswith(f"{a} 30 rows · {b} 10 rows (x2) · 50 rows (text), ")
    assert data.summary.tokens == sum(map(len, data.train["input_ids"]))
    assert data.summary.as_params()["sources"][1]["times"] == 2
    assert texts(prepared(DataSource(a, weight=3), DataSource(b, weight=2))) == texts(data)
    assert texts(prepared(DataSource(a, weight=3), DataSource(b, weight=2), seed=2)) != texts(data)


def test_sources_without_weights_are_concatenated_whatever_their_shapes(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", 3)
    (tmp_path / "b.csv").write_text("prompt,completion\nb ,0\n")
    data = prepared(DataSource(a), DataSource(str(tmp_path / "b.csv")))
    assert sorted(texts(data)) == ["a 0", "a 1", "a 2", "b 0"]
    assert "4 rows (text + prompt/completion)" in data.summary.line()


def test_a_source_empty_after_truncation_is_an_error_in_a_mixture_and_counted_without_weights(
    tmp_path: Path,
) -> None:
    a, b = write(tmp_path / "a.jsonl", 3), str(tmp_path / "b.jsonl")
    Path(b).write_text(json.dumps({"prompt": "w " * 50, "completion": "b"}))
    for settings in ({}, {"eval_fraction": 0.4}):
        config = DataConfig(train=(DataSource(a, weight=3), DataSource(b, weight=2)), **settings)
        with pytest.raises(
            DataError, match=r"b\.jsonl: none of its rows is left to train on after truncation"
        ):
            prepare(config, TOKENIZER, 9, 1)
    summary = prepare(DataConfig(train=(a, b)), TOKENIZER, 9, 1).summary
    assert f"{a} 3 rows · {b} 0 rows · 3 rows" in summary.line()
    assert summary.dropped == 1


def test_a_weight_from_python_is_checked_like_one_from_a_file() -> None:
    for weight in (0, -1, "much"):
        with pytest.raises(ConfigError, match="weight"):
            DataConfig(train=(DataSource("demo", weight=weight),))  # type: ignore[arg-type]


def test_each_source_has_its_own_limit_columns_and_template(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", 9)
    data = prepared(
        DataSource(a, max_rows=1),
        DataSource(a, max_rows=2, template="T {text}"),
        DataSource(a, columns={"prompt": "text", "completion": "text"}),
        max_rows=3,
    )
    found = Counter(text[:3] for text in texts(data))
    assert found == {"a 0": 2, "a 1": 1, "a 2": 1, "T a": 2}


def test_held_out_rows_are_in_no_mixture(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 10)
    data = prepared(DataSource(a, weight=1), DataSource(b, weight=1), eval_fraction=0.25)
    assert data.eval is not None
    held = {TOKENIZER.decode(ids).removesuffix("<|im_end|>") for ids in data.eval["input_ids"]}
    assert len(held) == 10
    assert len(held | set(texts(data))) == 40
    assert not held & set(texts(data))


def test_eval_rows_that_are_also_trained_are_counted(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", 5)
    data = prepare(DataConfig(train=a, eval=[a, write(tmp_path / "b.jsonl", 2)]), TOKENIZER, None, 1)
    assert (data.summary.eval_rows, data.summary.eval_in_train) == (7, 5)
    assert data.summary.line().endswith("eval 7 rows · 5 of them trained on, too")


def test_duplicate_rows_are_counted(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", 5)
    assert prepared(DataSource(a), DataSource(a, max_rows=2)).summary.duplicates == 2


def test_weights_that_would_repeat_a_source_endlessly_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 300), write(tmp_path / "b.jsonl", 1)
    with pytest.raises(DataError, match="by repeating the small sources: use weights that differ less"):
        prepared(DataSource(a, weight=0.001), DataSource(b, weight=1000))


sizes = st.lists(st.tuples(st.integers(1, 200), st.floats(0.1, 10)), min_size=1, max_size=5)


@given(sizes, st.integers(0, 9))
def test_no_mixture_loses_a_row_and_its_proportions_match_the_weights(
    sources: list[tuple[int, float]], seed: int
) -> None:
    rows, weights = [count for count, _ in sources], [weight for _, weight in sources]
    try:
        wanted = rows_of_sources(rows, weights)
    except DataError:
        return
    scale = max(count / weight for count, weight in sources)
    assert all(abs(number - weight * scale) <= 0.5 for number, weight in zip(wanted, weights, strict=True))
    found = Counter(numbers_of_mixture(rows, wanted, seed))
    start = 0
    for count, number in zip(rows, wanted, strict=True):
        own = [found[row] for row in range(start, start + count)]
        assert sum(own) == number
        assert min(own) >= 1
        assert max(own) - min(own) <= 1
        start += count
    assert sum(found.values()) == sum(wanted)
