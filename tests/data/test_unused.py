"""Parts of rows that do not reach the model are counted, and reported once, wherever the data are
described."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.cache import prepare_once
from fmstune.data.prepare import prepare
from fmstune.data.rows.reader import Reader
from fmstune.data.rows.unused import NotUsed, Unused, unused_lines
from fmstune.data.tokens.sft import Labeller
from fmstune.models.load import load_tokenizer

DEMO = load_tokenizer(ModelConfig(path="demo"))


def test_columns_are_reported_together_and_each_other_kind_on_its_own_line() -> None:
    found = Unused("a.jsonl")
    for number in range(1, 4):
        found.column("id", f"a.jsonl line {number}")
        found.column("source", f"a.jsonl line {number}")
    found.column("notes", "a.jsonl line 2")
    found.add("reasoning is not trained: the template leaves it out", "a.jsonl line 3")
    assert unused_lines(found.entries()) == [
        "columns not used: id, source (3 rows), notes (1 row)",
        "reasoning is not trained: the template leaves it out (1 row; the first is a.jsonl line 3)",
    ]


def test_with_several_sources_each_line_of_columns_names_its_source() -> None:
    entries = [NotUsed(source, "id", 2, f"{source} line 1", column=True) for source in ("a", "b")]
    assert unused_lines(entries) == [
        "columns of a not used: id (2 rows)",
        "columns of b not used: id (2 rows)",
    ]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that does not use some part of each row, like one of a new kind."""
    rows = Labeller.rows

    def noting(self: Labeller, reader: Reader, batch: int = 512) -> Any:
        for row in rows(self, reader, batch):
            reader.unused.add("a thing is not used", row.place)
            yield row

    monkeypatch.setattr(Labeller, "rows", noting)


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("streaming", [False, True])
def test_what_an_encoder_counts_is_in_the_summaries_of_train_and_eval(
    tmp_path: Path, streaming: bool
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps({'text': f'one {name}'})}\n" * 3)
    config = DataConfig(train=f"{tmp_path}/a.jsonl", eval=f"{tmp_path}/b.jsonl", streaming=streaming)
    summary = prepare(config, DEMO, None, 1).summary
    found = (*summary.unused, *summary.eval_unused)
    assert [(each.what, each.rows) for each in found] == [("a thing is not used", 3)] * 2
    assert len(summary.unused_lines()) == 2
    assert len(summary.as_params()["unused"]) == 2


@pytest.mark.usefixtures("counting")
def test_cached_data_report_it_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n')
    config = DataConfig(train=f"{tmp_path}/a.jsonl")
    first, second = (prepare_once(config, DEMO, None, 1, worth=0).summary for _ in range(2))
    assert second.prepared_before
    assert second.unused == first.unused != ()


def test_a_file_that_is_trained_and_evaluated_on_is_named_once() -> None:
    entry = NotUsed("a.jsonl", "id", 11, "a.jsonl line 1", column=True)
    assert unused_lines([entry, replace(entry)]) == ["columns not used: id (11 rows)"]
