"""Text is decoded correctly whatever its encoding; legacy encodings are reported."""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.data import DataConfig, DataSource
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.errors import DataError

WIDE = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32": b"",
}
KINDS = (".jsonl", ".json", ".csv", ".txt")
SAID = "is not UTF-8 text; it is read as Windows-1252 (Latin-1)"

WESTERN = (
    "abc", "Grüße", "créée", "€ 5", "señor", "“So—…”", "DÉJÀ VU", "———", "à é", "façade", "ÅÄÖ är bra",
)  # fmt: skip
OTHERS = {
    "cp1251": "Привет, как дела? Это вопрос.",
    "koi8-r": "Привет, как дела? Это вопрос.",
    "cp1253": "Καλημέρα, τι κάνεις σήμερα;",
    "cp1255": "שלום, מה שלומך היום",
    "cp1256": "مرحبا كيف حالك اليوم",
    "shift_jis": "日本語の質問",
    "euc_jp": "日本語の質問です。これは何ですか。",
    "gbk": "你好，今天的天气怎么样？",
    "euc_kr": "안녕하세요, 오늘 날씨는 어때요?",
}


def reader_of(path: Path, *, skip: bool = False) -> Reader:
    return Reader(DataSource(str(path)), "train", DataConfig(), BadRows(skip))


def written(texts: list[str], kind: str) -> str:
    """A file with these strings as its rows."""
    rows = [{"text": each} for each in texts]
    if kind == ".txt":
        return "".join(f"{each}\n" for each in texts)
    if kind == ".csv":
        table = io.StringIO()
        csv.writer(table).writerows([["text"], *([each] for each in texts)])
        return table.getvalue()
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return f"[{', '.join(lines)}]" if kind == ".json" else "".join(f"{line}\n" for line in lines)


letters = st.characters(
    codec="utf-8", exclude_categories=("Cc", "Zl", "Zp", "Cs"), exclude_characters="\ufeff"
)
texts = st.lists(st.text(letters, min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@given(texts, st.sampled_from(sorted(WIDE)), st.booleans())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_from_any_unicode_encoding(
    tmp_path: Path, kind: str, texts: list[str], encoding: str, marked: bool
) -> None:
    path = tmp_path / f"x{kind}"
    if kind == ".txt" and not texts[0].isascii():
        marked = True  # nothing else determines the byte order
    path.write_bytes((WIDE[encoding] if marked else b"") + written(texts, kind).encode(encoding))
    reader = reader_of(path)
    assert [row["text"] for _, row in reader] == texts
    assert reader.unused.entries() == ()


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.sampled_from(WESTERN), min_size=1, max_size=4))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_legacy_encoding_is_read_and_reported_once(tmp_path: Path, kind: str, texts: list[str]) -> None:
    texts = ["für", *texts]
    path = tmp_path / f"x{kind}"
    path.write_bytes(written(texts, kind).encode("cp1252"))
    reader = reader_of(path)
    for _ in range(2):
        assert [row["text"] for _, row in reader] == texts
    assert [each.what for each in reader.unused.entries()] == [f"{path} {SAID}"]


@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_utf_8_with_a_damaged_line_is_not_mistaken_for_a_legacy_encoding(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x{kind}"
    content = written(["Grüße", "für", "X", "schöne"], kind).encode()
    path.write_bytes(content.replace(b"X", b"\xe9"))
    with pytest.raises(DataError, match="line 3: this is not UTF-8 text; save the file as UTF-8"):
        list(reader_of(path))
    if kind == ".jsonl":
        reader = reader_of(path, skip=True)
        assert [row["text"] for _, row in reader] == ["Grüße", "für", "schöne"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_with_wide_characters_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x{kind}"
    path.write_bytes(written(["a", "b"], kind).encode("utf-16")[:-1])
    with pytest.raises(
        DataError, match="begins as UTF-16 text and continues as something else; save it as UTF-8"
    ):
        list(reader_of(path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", sorted(OTHERS))
def test_another_script_in_a_legacy_encoding_is_refused(tmp_path: Path, encoding: str, kind: str) -> None:
    path = tmp_path / f"x{kind}"
    path.write_bytes(written([OTHERS[encoding], "in English"], kind).encode(encoding))
    with pytest.raises(DataError, match=r"is not UTF-8 text.*save (it|the file) as UTF-8"):
        list(reader_of(path))
