"""Bad rows end the run with their location, or are skipped and listed; a handler is the user's own code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.errors import ConfigError, DataError
from fmstune.models.load import load_tokenizer

TOKENIZER = load_tokenizer(ModelConfig(path="demo"))
GOOD = {"prompt": "a b", "completion": " c"}
BAD = {
    2: ('{"prompt": ', "this is not valid JSON"),
    3: ('{"prompt": "a"}', "there is no `completion`"),
    4: ('{"prompt": "a", "completion": ""}', "the completion is empty"),
    5: ('{"prompt": "a", "completion": "\\ud83d"}', "it contains an unpaired surrogate"),
    6: ("7", "a row is a JSON object, this is a number"),
}


def write(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def prepared(source: str, skipped: Path | None = None, **settings: Any) -> PreparedData:
    return prepare(DataConfig(train=source, **settings), TOKENIZER, None, 1, skipped)


def seen(data: PreparedData) -> list[str]:
    return [TOKENIZER.decode(ids).removesuffix("<|im_end|>") for ids in data.train["input_ids"]]


def test_skipped_bad_rows_are_counted_and_listed(tmp_path: Path) -> None:
    source = write(tmp_path, json.dumps(GOOD), *(line for line, _ in BAD.values()), json.dumps(GOOD))
    listed = tmp_path / "skipped_rows.jsonl"
    data = prepared(source, listed, skip_bad_rows=True)
    assert seen(data) == ["a b c", "a b c"]
    assert data.summary.skipped == 5
    assert "5 bad rows skipped" in data.summary.line()
    entries = sorted((json.loads(line) for line in listed.read_text().splitlines()), key=lambda e: e["place"])
    for entry, (number, (_, reason)) in zip(entries, BAD.items(), strict=True):
        assert entry["place"] == f"{source} line {number}"
        assert entry["reason"].startswith(reason)
    told = list(data.bad.lines())
    assert len(told) == 4
    assert told[0].startswith(f"{source} line 2: this is not valid JSON")
    assert told[-1] == f"2 more rows are left out; all are in {listed}"


@pytest.mark.parametrize("number", BAD)
def test_unless_bad_rows_are_skipped_the_first_one_is_an_error(tmp_path: Path, number: int) -> None:
    line, reason = BAD[number]
    with pytest.raises(DataError, match=rf"x\.jsonl line 2: {reason}"):
        prepared(write(tmp_path, json.dumps(GOOD), line))


def test_rows_before_the_first_valid_one_are_bad_as_well(tmp_path: Path) -> None:
    data = prepared(write(tmp_path, '{"x": "y"}', json.dumps(GOOD)), skip_bad_rows=True)
    assert (data.summary.rows, data.summary.skipped) == (1, 1)


def test_only_bad_rows_are_an_error_that_shows_the_first(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"all of its rows are bad, such as: .*line 1: this is not valid JSON"
    ):
        prepared(write(tmp_path, "{", "{"), skip_bad_rows=True)


def test_table_rows_without_the_columns_of_the_first_line_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt,completion\na,b\na\na,b\n")
    assert prepared(str(tmp_path / "x.csv"), skip_bad_rows=True).summary.skipped == 1


def test_a_row_that_the_chat_template_refuses_is_skipped(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path="demo", chat_template="alpaca"))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    late = {"messages": [*messages, {"role": "system", "content": "c"}, messages[1]]}
    source = write(tmp_path, json.dumps({"messages": messages}), json.dumps(late))
    data = prepare(DataConfig(train=source, skip_bad_rows=True), tokenizer, None, 1)
    assert (data.summary.rows, data.summary.skipped) == (1, 1)
    assert "line 2: the model's chat template refuses this conversation" in data.bad.first[0]


class TestHandler:
    @pytest.fixture(autouse=True)
    def _module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_rows.py").write_text(
            "def clean(row):\n"
            "    if row['n'] == 2:\n"
            "        return None\n"
            "    row['n'] += 1\n"
            "    texts = [{'text': f'number {row[\"n\"] - 1}'}]\n"
            "    return texts * 2 if row['n'] == 4 else texts[0]\n"
            "def breaks(row):\n"
            "    return {'text': row['nosuch']}\n"
            "def wrong(row):\n"
            "    return 'text'\n"
            "number = 7\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "my_rows", raising=False)

    def test_its_return_values_are_the_rows(self, tmp_path: Path) -> None:
        source = write(tmp_path, *(f'{{"n": {n}}}' for n in range(1, 4)))
        data = prepared(source, handler="my_rows:clean")
        assert seen(data) == ["number 1", "number 3", "number 3"]
        (left_out,) = data.summary.unused_lines()
        assert left_out.startswith("rows are left out by data.handler (1 row; the first is ")

    def test_its_exceptions_name_the_row(self, tmp_path: Path) -> None:
        source = write(tmp_path, '{"n": 1}')
        with pytest.raises(
            DataError, match=r"line 1: data\.handler = 'my_rows:breaks' raised KeyError: 'nos"
        ):
            prepared(source, handler="my_rows:breaks")

    def test_a_return_value_that_is_no_row_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="returned a string; it returns a row, a list of rows, or None"):
            prepared(write(tmp_path, '{"n": 1}'), handler="my_rows:wrong")

    def test_dropping_every_row_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has no rows that data\.handler = 'my_rows:clean' leaves"):
            prepared(write(tmp_path, '{"n": 2}'), handler="my_rows:clean")

    @pytest.mark.parametrize(("name", "says"), [("my_rows:nosuch", "no nosuch"), ("no_such:x", "imported")])
    def test_an_unknown_handler_is_an_error(self, tmp_path: Path, name: str, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            prepared(write(tmp_path, '{"n": 2}'), handler=name)

    def test_a_handler_that_is_not_callable_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is not a function"):
            prepared(write(tmp_path, '{"n": 2}'), handler="my_rows:number")
