"""Rows are read from every file format in common use, and none is dropped."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmstune.config.schema.tables import DataConfig, DataSource
from fmstune.data.files import json_files
from fmstune.data.files.splits import Wanted
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader, load_rows
from fmstune.errors import DataError
from tests.support.row_files import ROW, ROWS, read, refused

CASES = Path(__file__).parent / "cases" / "rows"


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("one_pretty.json", [ROW]),
        ("pretty_objs.json", [ROW] * 4),
        ("top_object_pretty.json", [ROW] * 4),
        ("array_in_jsonl.jsonl", [ROW] * 4),
        ("pandas_cols.json", [ROW] * 4),
        ("semi.csv", ROWS),
    ],
)
def test_the_cases_are_read(name: str, rows: list[Any], tmp_path: Path) -> None:
    content = (CASES / name).read_bytes()
    assert read(tmp_path / name, content) == rows
    if not name.endswith(".csv"):
        other = {".json": "x.jsonl", ".jsonl": "x.json"}[Path(name).suffix]
        assert read(tmp_path / other, content) == rows


def test_a_cell_with_a_python_repr_is_parsed() -> None:
    [row] = load_rows(str(CASES / "repr.csv")).rows
    assert [message["content"] for message in row["messages"]] == ["it's q", "REPR-ANS"]


def test_a_duplicate_column_is_reported() -> None:
    with pytest.raises(DataError, match="the column 'completion' occurs 2 times"):
        load_rows(str(CASES / "dup_header.csv"))


LINES = [json.dumps(row) for row in ROWS]
CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES) + ",\n",
        ",\n".join(LINES),
        " ".join(LINES),
        "".join(LINES),
        "\ufeff\r\n" + "\r\n\r\n".join(LINES),
        LINES[0] + "\n" + json.dumps(ROWS[1], indent=1),
        json.dumps(ROWS[0], indent=1) + LINES[1],
        "\n".join(f"[{line}]" for line in LINES),
        json.dumps(ROWS[:1]) + "\n" + LINES[1],
        json.dumps({"version": "v2.0", "data": ROWS}),
        json.dumps({"examples": ROWS, "license": "x"}, indent=1),
        json.dumps({"anything": ROWS}),
        json.dumps({"result": {"n": 2}, "data": {"rows": ROWS}}),
        json.dumps(
            {"features": [{"name": "a"}], "rows": [{"row_idx": n, "row": r} for n, r in enumerate(ROWS)]}
        ),
        json.dumps({"train": ROWS, "test": ROWS[:1]}),
        json.dumps({"train_sft": ROWS, "test_sft": ROWS[:1]}),
        json.dumps({"id-1": ROWS[0], "id-2": ROWS[1]}),
        json.dumps({"train": {key: [row[key] for row in ROWS] for key in ROW}}),
        *(
            pandas.DataFrame(ROWS).to_json(orient=orient)
            for orient in ("columns", "index", "records", "split")
        ),
        pandas.DataFrame(ROWS).to_json(orient="table"),
        pandas.DataFrame(ROWS).to_json(orient="records", lines=True),
        json.dumps({key: [row[key] for row in ROWS] for key in ROW}),
    ],
)
@pytest.mark.parametrize("at_once", [json_files._AT_ONCE, 16])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_json_in_any_of_its_layouts_holds_the_same_rows(
    content: str, at_once: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_AT_ONCE", at_once)
    assert [{key: row[key] for key in ROW} for row in read(tmp_path / name, content)] == ROWS


@pytest.mark.parametrize("at_once", [json_files._AT_ONCE, 16])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "messages": CHAT},
        {"contents": CHAT, "tools": [{"functionDeclarations": [{"name": "f"}]}]},
        {"tools": [{"name": "f", "input": "i", "output": "o"}], "contents": CHAT},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"question": "a", "answer": "b", "contexts": [{"title": "t", "text": "x"}]},
        {"frage": "a", "antwort": "b", "quellen": [{"title": "t", "text": "x"}]},
        {"gespräch": CHAT},
        {"conversations": ["q", "a"]},
        {"system": [{"type": "text", "text": "a"}], "messages": CHAT},
    ],
)
def test_an_object_that_is_itself_a_row_is_one_row(
    row: Any, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_AT_ONCE", at_once)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(row, indent=1))
    wanted = Wanted("train", columns=frozenset({"frage", "antwort"}))
    assert [found for _, found in json_files.read_json(path, "x", wanted)] == [row]


@pytest.mark.parametrize(
    "content", [json.dumps(CHAT), f"{json.dumps(CHAT)}\n{json.dumps(CHAT)}", json.dumps([CHAT])]
)
def test_a_list_of_messages_is_a_conversation(content: str, tmp_path: Path) -> None:
    assert all(row == {"messages": CHAT} for row in read(tmp_path / "x.jsonl", content))


@pytest.mark.parametrize("at_once", [json_files._AT_ONCE, 16])
def test_of_several_lists_of_rows_one_has_to_be_selected(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_AT_ONCE", at_once)
    content = json.dumps({"easy": ROWS, "hard": ROWS[:1]})
    told = refused(tmp_path / "x.json", content)
    assert "holds several lists of rows, easy and hard; choose one with split under" in told
    assert read(tmp_path / "x.json", content, split="hard") == ROWS[:1]
    both = json.dumps({"test": ROWS, "validation": ROWS})
    assert "has no split train; it has test, validation" in refused(tmp_path / "x.json", both)


def test_a_damaged_line_among_multiline_objects_costs_only_itself(tmp_path: Path) -> None:
    pretty = [json.dumps(row, indent=1) for row in ROWS]
    damaged = pretty[0].replace('"prompt":', '"prompt"')
    (tmp_path / "x.json").write_text("\n".join([pretty[0], damaged, pretty[1], LINES[0][:20], LINES[1]]))
    bad = BadRows(skip=True)
    rows = [row for _, row in Reader(DataSource(str(tmp_path / "x.json")), "train", DataConfig(), bad)]
    assert rows == [ROWS[0], ROWS[1], ROWS[1]]
    assert ["x.json line 5: this is not valid JSON" in bad.first[0], bad.count] == [True, 2]


def test_a_large_wrapped_file_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_AT_ONCE", 1 << 20)
    path = tmp_path / "x.json"
    row = json.dumps({"text": "word " * 200})
    path.write_text(f'{{"version": 1, "data": [{", ".join([row] * 20_000)}], "end": [1, 2]}}')
    tracemalloc.start()
    assert sum(1 for _ in json_files.read_json(path, "x", Wanted("train"))) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 10_000_000 < path.stat().st_size
    tracemalloc.stop()


class TestTables:
    @pytest.mark.parametrize(
        "content",
        [
            "prompt;completion\nWhat is 1+1?;TWO-ANS\nb;c\n",
            "prompt|completion\nWhat is 1+1?|TWO-ANS\nb|c\n",
            "prompt\tcompletion\r\nWhat is 1+1?\tTWO-ANS\r\nb\tc\r\n",
            'sep=;\n"prompt";"completion"\n"What is 1+1?";TWO-ANS\nb;c\n',
            " prompt , completion \nWhat is 1+1?,TWO-ANS\n\n,\nb,c\n,\n",
            "\ufeffprompt;completion\r\nWhat is 1+1?;TWO-ANS\r\nb;c\r\n;\r\n",
            "prompt;completion\nWhat is 1+1?;TWO-ANS\nb;c\n".encode("utf-16"),
            "prompt,completion\rWhat is 1+1?,TWO-ANS\rb,c\r",
        ],
    )
    @pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
    def test_any_delimiter_between_cells_is_detected(
        self, content: str | bytes, name: str, tmp_path: Path
    ) -> None:
        assert read(tmp_path / name, content) == ROWS

    def test_commas_in_text_are_not_delimiters(self, tmp_path: Path) -> None:
        content = "prompt;completion\nOne, two, three?;Yes, no\nYes, and, no;No, yes, maybe\n"
        assert read(tmp_path / "x.csv", content)[0] == {"prompt": "One, two, three?", "completion": "Yes, no"}
        assert read(tmp_path / "x.csv", 'text\na;b\n"c;d"\n') == [{"text": "a;b"}, {"text": "c;d"}]

    def test_the_index_that_pandas_writes_is_an_unused_column(self, tmp_path: Path) -> None:
        path = tmp_path / "x.csv"
        pandas.DataFrame(ROWS).to_csv(path)
        reader = Reader(DataSource(str(path)), "train", DataConfig(), BadRows())
        assert [row for _, row in reader] == ROWS
        assert [(each.what, each.rows) for each in reader.unused.entries()] == [("column 1", 2)]

    def test_a_legacy_encoding_is_read_and_reported(self, tmp_path: Path) -> None:
        path = tmp_path / "x.csv"
        path.write_bytes("text\nGrüße für 5 €\n".encode("cp1252") + b"\x81\n")
        reader = Reader(DataSource(str(path)), "train", DataConfig(), BadRows())
        assert [row["text"] for _, row in reader] == ["Grüße für 5 €", "\x81"]
        assert [each.what for each in reader.unused.entries()] == [
            f"{path} is not UTF-8 text; it is read as Windows-1252 (Latin-1)"
        ]

    def test_lists_that_pandas_prints_from_a_parquet_file_are_parsed(self, tmp_path: Path) -> None:
        pq.write_table(pa.Table.from_pylist([{"messages": CHAT}]), tmp_path / "x.parquet")
        pandas.read_parquet(tmp_path / "x.parquet").to_csv(tmp_path / "x.csv", index=False)
        assert "} {" in (tmp_path / "x.csv").read_text()  # no comma between them
        assert load_rows(str(tmp_path / "x.csv")).rows == [{"messages": CHAT}]

    def test_a_duplicate_column_of_a_parquet_file_is_reported(self, tmp_path: Path) -> None:
        table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
        pq.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(DataError, match="the column 'text' occurs twice"):
            load_rows(str(tmp_path / "x.parquet"))


class TestSavedSplits:
    @pytest.mark.parametrize(
        ("names", "train"),
        [(("train_sft", "test_sft"), 0), (("all",), 0), (("test", "train"), 1)],
    )
    def test_the_matching_or_only_split_is_used(
        self, tmp_path: Path, names: tuple[str, ...], train: int
    ) -> None:
        from datasets import Dataset, DatasetDict

        rows = {name: Dataset.from_list([{"text": name}]) for name in names}
        DatasetDict(rows).save_to_disk(str(tmp_path / "x"))
        assert load_rows(str(tmp_path / "x")).rows == [{"text": names[train]}]

    def test_of_two_matching_splits_one_has_to_be_selected(self, tmp_path: Path) -> None:
        from datasets import Dataset, DatasetDict

        rows = {name: Dataset.from_list([{"text": name}]) for name in ("train_a", "train_b")}
        DatasetDict(rows).save_to_disk(str(tmp_path / "x"))
        with pytest.raises(DataError, match="has no split train; it has train_a, train_b"):
            load_rows(str(tmp_path / "x"))
        assert load_rows(DataSource(str(tmp_path / "x"), split="train_b")).rows == [{"text": "train_b"}]
