"""Rows are read from every kind of file, and damage is reported with file, line and remedy."""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import json
import lzma
import math
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli

from fmstune.config.schema.data import DataConfig, DataSource
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader, Rows, load_rows
from fmstune.errors import DataError

# The time in its header would give the test ids different values in each process.
packed = functools.partial(gzip.compress, mtime=0)

CHAT = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(rows: Rows) -> list[str]:
    return [row["text"] for row in rows.rows]


def refused(source: str, **kwargs: Any) -> str:
    """The message with which `source` is refused; it always names the source."""
    with pytest.raises(DataError) as caught:
        load_rows(source, **kwargs)
    assert source in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": "b"}\n'),
        ("x.jsonl", '\n{"text": "a"}\n  \n{"text": "b"}'),
        ("x.jsonl", '{"text": "a"}\r\n{"text": "b"}\r\n'),
        ("x.jsonl", '\ufeff{"text": "a"}\n{"text": "b"}\n'),
        ("X.JSONL", '{"text": "a"}\n{"text": "b"}\n'),
        ("x.json", '{"text": "a"}\n{"text": "b"}\n'),
        ("x.json", '\n[{"text": "a"},\n {"text": "b"}]\n'),
        ("x.csv", "id,text\n1,a\n2,b\n"),
        ("x.csv", "\ufeffid,text\r\n1,a\r\n\r\n2,b\r\n"),
        ("x.tsv", "id\ttext\n1\ta\n2\tb\n"),
        ("x.jsonl.gz", packed(b'{"text": "a"}\n{"text": "b"}\n')),
        ("x.csv.gz", packed(b"text\na\nb\n")),
        ("x.ndjson", '{"text": "a"}\n{"text": "b"}\n'),
        ("x.jsonl.bz2", bz2.compress(b'{"text": "a"}\n{"text": "b"}\n')),
        ("x.json.xz", lzma.compress(b'[{"text": "a"}, {"text": "b"}]')),
        ("x.tsv.ZST", pa.compress(b"text\na\nb\n", codec="zstd", asbytes=True)),
        ("x.txt", "a\n\nb\n"),
        ("x.txt.gz", packed(b"\xef\xbb\xbfa\r\nb")),
    ],
)
def test_every_kind_of_file_is_read(tmp_path: Path, name: str, content: str | bytes) -> None:
    source = write(tmp_path / name, content)
    rows = load_rows(source)
    assert (rows.shape, texts(rows)) == ("text", ["a", "b"])
    assert rows.sha256 == hashlib.sha256(Path(source).read_bytes()).hexdigest()


def test_parquet_is_read_without_the_fields_that_only_other_rows_have(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = [CHAT, {"messages": [{"role": "user", "content": "hi"}, called]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert load_rows(str(tmp_path / "x.parquet")).rows == rows


def test_locations_count_the_lines_of_the_file_including_blank_ones(tmp_path: Path) -> None:
    rows = load_rows(write(tmp_path / "x.jsonl", '\n{"text": "a"}\n\n{"text": "b"}\n'))
    assert rows.place(1) == f"{tmp_path}/x.jsonl line 4"


def test_line_separators_within_a_json_string_do_not_end_the_row(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be"
    assert texts(load_rows(write(tmp_path / "x.jsonl", json.dumps({"text": text}, ensure_ascii=False)))) == [
        text
    ]


def test_cells_may_contain_newlines_delimiters_and_quotes(tmp_path: Path) -> None:
    assert texts(load_rows(write(tmp_path / "x.csv", 'text\n"a, ""b""\nc"\n'))) == ['a, "b"\nc']


def test_a_cell_as_long_as_a_book_is_read(tmp_path: Path) -> None:
    assert texts(load_rows(write(tmp_path / "x.csv", "text\n" + "a" * 300_000))) == ["a" * 300_000]


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", lines({"text": "a"}, {"text": "b"}) + "damaged\n")
    assert texts(load_rows(source, most=2)) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (CHAT, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt/completion"),
        (
            {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]},
            "prompt/completion as messages",
        ),
        ({"text": "a"}, "text"),
        ({"messages": None, "text": "a"}, "text"),
        (CHAT | {"tools": [{"type": "function"}]}, "messages"),
        (CHAT | {"tools": '[{"type": "function"}]'}, "messages"),
    ],
)
def test_the_shape_is_recognised(tmp_path: Path, row: Any, shape: str) -> None:
    assert load_rows(write(tmp_path / "x.jsonl", lines(row))).shape == shape


def test_the_demo_has_rows_for_training_and_for_evals() -> None:
    assert len(load_rows("demo").rows) == 400
    assert len(load_rows("demo", "eval").rows) == 60


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", lines(CHAT) + '{"messages": \n', "line 2: this is not valid JSON"),
        ("x.jsonl", '{\n  "text": "a"\n', "line 1: this is not valid JSON"),
        ("x.jsonl", '{"text": "a", "text": "b"}\n', "line 1: it has the key `text` twice"),
        ("x.jsonl", lines(CHAT, ["a"]), "line 2: a row is a JSON object, this is a list"),
        ("x.jsonl", "[" * 100_000, "is not valid JSON (it is nested too deeply: line 1"),
        ("x.jsonl", '{"text": ' + "1" * 5000 + "}", "line 1"),
        ("x.jsonl", "", "has no rows"),
        ("x.jsonl", "\n \n\r\n", "has no rows"),
        ("x.json", "[]", "has no rows"),
        ("x.csv", "text\n", "has no rows"),
        ("x.csv", "", "has no rows"),
        ("x.json", '[{"text": "a"}, 7]', "row 2: a row is a JSON object, this is a number"),
        ("x.json", '[{"text": "a"}', "is not valid JSON"),
        ("x.csv", "id,text\n1,a\n2\n", "line 3: this row does not have the 2 columns"),
        ("x.csv", "id,text\n1,a\n2,b,c\n", "line 3: this row does not have the 2 columns"),
        ("x.csv", 'text\n"a\nb\nc\n', "double those in it"),
        ("x.tsv", "a\tb\nc\td\n", "the columns are a, b; rows have `messages`"),
        (
            "x.jsonl",
            b'{"text": "a"}\n{"text": "\xff"}\n',
            "line 2: this is not UTF-8 text; save the file as UTF-8",
        ),
        (
            "x.jsonl",
            '{"text": "a"}\n'.encode("utf-16")[:-1],
            "begins as UTF-16 text and continues as something else",
        ),
        ("x.jsonl.gz", b"no gzip", "cannot be read"),
        ("x.jsonl.gz", packed(b'{"text": "a"}\n' * 99)[:-12], "cannot be read"),
        ("x.jsonl.gz", packed(b"")[:10] + b"\xff" * 40, "cannot be read"),
        ("x.jsonl.bz2", bz2.compress(b'{"text": "a"}\n' * 99)[:-12], "cannot be read"),
        ("x.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 99)[:-12], "cannot be read"),
        ("x.jsonl.zst", b"no zstandard", "cannot be read"),
        ("x.csv", "text, text\na,b\n", "the column 'text' occurs 2 times"),
        ("x.csv", "text\na".encode("utf-16")[:-1], "begins as UTF-16 text and continues as something else"),
        ("x.txt", b"a\n\xff\n", "line 2: this is not UTF-8 text"),
        ("x.txt", "\n \n", "has no rows"),
        ("x.arrow", b"no arrow", "is not a readable arrow file"),
        ("x.parquet", b"no parquet", "is not a readable parquet file"),
        ("x.parquet", b"PAR1" + b"\0" * 50 + b"PAR1", "is not a readable parquet file"),
        ("x.parquet", b"", "is not a readable parquet file"),
        ("x.docx", "a", "has an unsupported format (.docx); the supported ones are .jsonl"),
        ("x", "a", "unsupported format (no suffix)"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    assert message in refused(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (CHAT, {"text": "a"}, "line 17: there is no `messages`; the first row has it, and so must all"),
        (CHAT, {"messages": None}, "line 17: there is no `messages`"),
        (CHAT, {"messages": "hi"}, "line 17: `messages` takes a list of messages"),
        (CHAT, {"messages": []}, "line 17: `messages` takes a list of messages with at least one"),
        (CHAT, {"messages": ["hi"]}, "line 17: message 1 of `messages` is not an object with `role`"),
        (
            CHAT,
            {"messages": [{"content": "a"}]},
            "line 17: message 1 of `messages` is not an object with `role`",
        ),
        (CHAT, {"messages": [{"role": "me", "content": "a"}]}, "has the role 'me'; roles are system, dev"),
        (CHAT, {"messages": [{"role": ["user"], "content": "a"}]}, "has the role ['user']; roles are"),
        (CHAT, {"messages": [{"role": "user"}]}, "line 17: message 1 of `messages` has no text"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": 7}]},
            "line 17: message 1 of `messages` has no text",
        ),
        (CHAT, {"messages": CHAT["messages"][:1]}, "line 17: no message of `messages` is the assistant's"),
        (CHAT, CHAT | {"tools": {"a": 1}}, "line 17: `tools`"),
        (CHAT, CHAT | {"tools": "[{"}, "line 17: `tools`"),
        (CHAT, CHAT | {"tools": ["search"]}, "line 17: `tools`"),
        ({"text": "a"}, {"txt": "a"}, "line 17: there is no `text`"),
        ({"text": "a"}, {"text": True}, "line 17: `text` is a boolean, where a text is needed"),
        ({"text": "a"}, {"text": {}}, "line 17: `text` is an object"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a"}, "line 17: there is no `completion`"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ["b"]}, "`completion` is a list"),
        (
            {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]},
            {"prompt": '[{"role": "user", "cont', "completion": "b"},
            "line 17: `prompt` takes a list of messages",
        ),
        (
            {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]},
            {"prompt": CHAT["messages"], "completion": CHAT["messages"][:1]},
            "line 17: no message of `completion` is the assistant's",
        ),
    ],
)
def test_a_damaged_row_is_refused_with_its_line(tmp_path: Path, good: Any, bad: Any, message: str) -> None:
    assert message in refused(write(tmp_path / "x.jsonl", lines(*[good] * 16, bad)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "the columns are n (without a value in this row: frage, antwort); rows have"),
        (
            {"columns": {"question": "frage", "answer": "antwort"}},
            "`frage`, which data.columns maps to `question`, has no value",
        ),
        ({"template": "{frage} {antwort}"}, "`frage`, which the template names, has no value"),
    ],
)
def test_a_null_column_is_said_to_have_no_value_rather_than_to_be_missing(
    tmp_path: Path, data: dict[str, Any], says: str
) -> None:
    table = pa.table({"frage": [None, "a"], "antwort": [None, "b"], "n": [1, 2]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert f"row 1: {says}" in refused(str(tmp_path / "x.parquet"), config=DataConfig(**data))


@pytest.mark.parametrize(
    ("row", "advised"),
    [
        ({"frage": "a", "antwort": "b"}, ('{question="frage", answer="antwort"}', "'{frage} {antwort}'")),
        ({"id": "7", "article": "a", "highlights": "b"}, ('{question="article", answer="highlights"}',)),
        ({"category": "x", "user_query": "a", "reply": "b"}, ('{question="user_query", answer="reply"}',)),
        (
            {"problem": "a", "solution": "b", "source": "x", "uuid": "1"},
            ('="problem", answer="solution"}',),
        ),
        ({"body": "a", "url": "x", "n": 7}, ('{text="body"}', "'{body}'")),
        (
            {"nr": "17", "betreff": "Where is it?", "inhalt": "On its way.", "datum": "1.2.", "column 5": ""},
            ('{question="betreff", answer="inhalt"}',),
        ),
        ({"translation": {"de": "a", "en": "b"}}, ("data.handler",)),
    ],
)
def test_an_unknown_shape_is_refused_with_its_columns_and_plausible_names_for_them(
    tmp_path: Path, row: dict[str, Any], advised: tuple[str, ...]
) -> None:
    message = refused(write(tmp_path / "x.jsonl", lines(row)))
    assert f"line 1: the columns are {', '.join(row)}; rows have `messages`" in message
    for words in advised:
        assert words in message


@pytest.mark.parametrize(
    ("row", "method"),
    [
        ({"dialogue": "a", "summary": "b"}, "sft"),
        ({"problem": "a", "solution": "b"}, "sft"),
        ({"user_query": "a", "good": "b", "bad": "c"}, "dpo"),
        ({"instruction": "a", "accepted": "b", "rejected": "c"}, "dpo"),
    ],
)
def test_the_columns_that_an_error_proposes_make_a_chat(
    tmp_path: Path, row: dict[str, Any], method: str
) -> None:
    source = DataSource(str(write(tmp_path / "x.jsonl", lines(row))))

    def read(columns: dict[str, str] | None) -> Any:
        reader = Reader(source, "train", DataConfig(columns=columns), BadRows(), method=method)
        return next(iter(reader))[1]

    with pytest.raises(DataError) as refused:
        read(None)
    proposed = re.search(r"data\.columns=({.*?})", str(refused.value))
    assert proposed is not None
    made = read(tomli.loads(f"columns = {proposed[1]}")["columns"])
    asked = made["messages"] if method == "sft" else made["prompt"]
    assert asked[0] == {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    "source", ["trian.jsonl", "./data", "/no/such/place", "~/x", "a.csv.gz", "x" * 5000 + ".csv"]
)
def test_a_missing_file_is_never_looked_up_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    assert "there is no such file" in refused(source)


def test_a_data_set_that_cannot_be_downloaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr("datasets.load_dataset", offline)
    message = refused("owner/name", split="eval")
    assert message.endswith("cannot be fetched from the hub (split validation): no network")


def test_a_data_set_of_the_hub_is_read_no_further_than_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = iter(lambda: {"text": "a", "messages": None}, None)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: endless)
    assert texts(load_rows("owner/name", most=3)) == ["a"] * 3


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_nan_is_a_missing_value_not_a_word(tmp_path: Path, form: str) -> None:
    rows = [{"q": "What?", "a": "this"}, {"q": "Why?", "a": math.nan}]
    path = tmp_path / f"x.{form}"
    if form == "json":
        path.write_text(json.dumps(rows))
    else:
        table = pa.table({"q": ["What?", "Why?"], "a": [1.0, math.nan]})
        pq.write_table(table, path)
    for config in (DataConfig(template="{q} => {a}"), DataConfig(columns={"prompt": "q", "completion": "a"})):
        with pytest.raises(DataError, match=r"2: `a`, which .* has no value"):
            load_rows(str(path), config=config)
    path = tmp_path / "y.json"
    path.write_text(json.dumps([{"messages": math.nan, "question": "q", "answer": "a"}]))
    assert load_rows(str(path)).shape == "messages"
