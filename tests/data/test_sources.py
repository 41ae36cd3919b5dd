"""A source is a file, several, a directory, a glob or a folder of `save_to_disk`; anything else is
refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.paths.splits import Slice
from fmstune.config.schema.tables import DataConfig, DataSource
from fmstune.data.files.source import Origin
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader, Rows, load_rows
from fmstune.errors import DataError
from tests.support.unprivileged import unprivileged


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    return path


def texts(rows: Rows) -> list[str]:
    return [row["text"] for row in rows.rows]


def test_linked_folders_are_read_once_and_a_loop_ends(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl", "a")
    write(tmp_path / "elsewhere" / "b.jsonl", "b")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert texts(load_rows(str(tmp_path / "data"))) == ["a", "b"]


@pytest.mark.parametrize("form", ["{}", "{}/*.jsonl", "{}/**/*.jsonl"])
def test_a_data_file_that_is_a_link_to_nothing_is_refused(tmp_path: Path, form: str) -> None:
    write(tmp_path / "a.jsonl", "a")
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "notes.md").symlink_to("gone.md")
    told = refused(form.format(tmp_path))
    assert f"{tmp_path}/b.jsonl is a link to gone.jsonl, which does not exist." in told


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("data", "data/closed cannot be read"),
        ("data/*.jsonl", ""),
        ("data/**/*.jsonl", "data/closed cannot be read"),
        ("data/*/x.jsonl", "data/closed cannot be read"),
        ("data/closed", "data/closed cannot be read"),
        ("data/closed/x.jsonl", "data/closed cannot be read"),
        ("data/closed/*.jsonl", "data/closed cannot be read"),
        ("data/closed/deep/x.jsonl", "data/closed cannot be read"),
        ("data/passable/x.jsonl", ""),
        ("data/passable/*.jsonl", "data/passable cannot be read"),
    ],
)
def test_a_folder_that_may_not_be_read_is_named_instead_of_left_out(
    tmp_path: Path, name: str, says: str
) -> None:
    for folder in ("", "closed", "passable"):
        write(tmp_path / "data" / folder / "x.jsonl", "x")
    (tmp_path / "data" / "closed").chmod(0)
    (tmp_path / "data" / "passable").chmod(0o100 if "passable" in name else 0o700)
    code = (
        "from fmstune.config.paths.data import NoFiles, find_files\n"
        f"try: print(*find_files({name!r}, 'train').files)\n"
        "except NoFiles as error: print(error)"
    )
    done = unprivileged(code, tmp_path)
    folder = says.partition(" ")[0]
    remedy = f"Permission denied. `chmod u+rwx {folder}` gives you access."
    told = f"the directory {says}: {remedy}" if says else name.replace("*", "x")
    assert (done.stdout, done.stderr) == (f"{told}\n", "")


def refused(source: str | DataSource, split: Any = "train") -> str:
    with pytest.raises(DataError) as caught:
        load_rows(source, split)
    return str(caught.value)


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        write(tmp_path / name, name)
    write(tmp_path / "deep" / "er" / "d.jsonl", "d.jsonl")
    assert texts(load_rows(f"{tmp_path}/*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert texts(load_rows(f"{tmp_path}/**/[b-d].jsonl")) == ["b.jsonl", "d.jsonl"]
    assert "no file matches it" in refused(f"{tmp_path}/*.parquet")


def test_a_file_with_glob_characters_in_its_name_is_that_file(tmp_path: Path) -> None:
    assert texts(load_rows(str(write(tmp_path / "a[1].jsonl", "a")))) == ["a"]


def test_rows_of_several_files_are_located_in_their_own_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"txt": "c"}\n')
    assert refused(str(tmp_path)).startswith(f"{tmp_path}/b.jsonl line 2: there is no `text`")


def test_a_directory_reads_all_its_files_except_hidden_ones_and_those_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "2.jsonl", "b")
    write(tmp_path / "1" / "x.jsonl", "a")
    write(tmp_path / ".cache" / "x.jsonl", "hidden")
    (tmp_path / "README.md").write_text("about")
    assert texts(load_rows(str(tmp_path))) == ["a", "b"]
    assert load_rows(str(tmp_path)).sha256 != load_rows(f"{tmp_path}/2.jsonl").sha256


@pytest.mark.parametrize(
    "names", [("train.jsonl", "test.jsonl", "dev.jsonl"), ("train/1.jsonl", "my_test/1.jsonl", "val/1.jsonl")]
)
def test_the_requested_split_of_a_directory_is_used(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, text in zip(names, ("train", "test", "validation"), strict=True):
        write(tmp_path / name, text)
    folder = str(tmp_path)
    assert texts(load_rows(folder)) == ["train"]
    assert texts(load_rows(folder, "eval")) == ["validation"]
    assert texts(load_rows(DataSource(folder, split="test"))) == ["test"]


def test_a_missing_split_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "a")
    assert "its files are named after train; none is of the split validation" in refused(
        str(tmp_path), "eval"
    )


@pytest.mark.parametrize(
    ("names", "says"),
    [((), "has no file in a supported format"), (("a.jsonl", "b.csv"), "choose one kind, as in")],
)
def test_an_ambiguous_directory_is_refused(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    for name in names:
        write(tmp_path / name, "a")
    assert says in refused(str(tmp_path))


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    rows = [{"text": "a", "extra": None}, {"text": "b", "extra": None}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    assert texts(load_rows(str(tmp_path / "one"))) == ["a", "b"]
    parts = {"train": datasets.Dataset.from_list(rows[:1]), "test": datasets.Dataset.from_list(rows[1:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert texts(load_rows(str(tmp_path / "two"))) == ["a"]
    assert texts(load_rows(DataSource(str(tmp_path / "two"), split="test"), "eval")) == ["b"]
    told = refused(str(tmp_path / "two"), "eval")
    assert "has no split validation; it has train, test. Choose one with split under [[data.eval]]" in told


def reported(source: str | DataSource, split: Any = "train", config: DataConfig | None = None) -> list[str]:
    """What the reader of a source reports besides its rows."""
    given = DataSource(source) if isinstance(source, str) else source
    reader = Reader(given, split, config or DataConfig(), BadRows())
    assert list(reader)
    return [each.what for each in reader.unused.entries()]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (("train.jsonl", "faq.jsonl", "more.csv"), ("faq.jsonl", "more.csv")),
        (("a.jsonl", "b.xlsx", "c.zip", "README.md", ".gitattributes", "_SUCCESS"), ("b.xlsx", "c.zip")),
        (("train/a.jsonl", "deep/er/notes.docx", "LICENSE"), ("notes.docx",)),
        (("train.jsonl", "README.md"), ()),
        (("a.jsonl", "b.jsonl"), ()),
    ],
)
def test_files_of_a_directory_that_are_not_read_are_reported(
    tmp_path: Path, files: tuple[str, ...], named: tuple[str, ...]
) -> None:
    for name in files:
        write(tmp_path / name, name)
    told = " ".join(reported(str(tmp_path)))
    assert [name for name in files if Path(name).name in told] == [
        each for each in files if Path(each).name in named
    ]
    assert bool(told) == bool(named)


@pytest.mark.parametrize("form", ["directory", "json", "saved"])
def test_unused_splits_are_reported(tmp_path: Path, form: str) -> None:
    names = ("train", "test", "validation")
    path = tmp_path / "x"
    if form == "directory":
        for name in names:
            write(path / f"{name}.jsonl", name)
    elif form == "json":
        path = tmp_path / "x.json"
        path.write_text(json.dumps({name: [{"text": name}] for name in names}))
    else:
        saved = {name: datasets.Dataset.from_list([{"text": name}]) for name in names}
        datasets.DatasetDict(saved).save_to_disk(str(path))
    told = f"the splits test, validation are not trained on; --eval-data {path} evaluates validation"
    assert told in " ".join(reported(str(path)))
    evaluated = DataConfig(eval=(DataSource(str(path)),))
    assert "the split test is not trained on; use split" in " ".join(reported(str(path), config=evaluated))
    assert reported(DataSource(str(path), split="train")) == []
    assert reported(str(path), "eval") == []


def test_folders_that_match_a_glob_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "a")
    write(tmp_path / "deep" / "b.jsonl", "b")
    assert "deep not read" in " ".join(reported(f"{tmp_path}/*"))
    assert reported(f"{tmp_path}/**/*.jsonl") == []


def test_splits_of_a_saved_folder_with_unknown_names_are_reported(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_list([{"text": "a"}]) for name in ("train", "extra", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "x")
    assert ["extra not read" in each for each in reported(str(tmp_path / "x"))] == [True, False]
    assert reported(DataSource(str(tmp_path / "x"), split="extra")) == []


def test_a_damaged_folder_of_save_to_disk_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "x")
    (tmp_path / "x" / "data-00000-of-00001.arrow").write_bytes(b"nothing")
    assert "cannot be read as a folder of save_to_disk" in refused(str(tmp_path / "x"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"text": "a"}])}).save_to_disk(tmp_path / "y")
    (tmp_path / "y" / "dataset_dict.json").write_text("{")
    assert "cannot be read as a folder of save_to_disk" in refused(str(tmp_path / "y"))


@pytest.mark.parametrize("opened", [pa.ipc.new_file, pa.ipc.new_stream])
def test_both_formats_of_arrow_are_read(tmp_path: Path, opened: Any) -> None:
    table = pa.table({"text": ["a", "b"]})
    with opened(str(tmp_path / "x.arrow"), table.schema) as file:
        file.write_table(table)
    assert texts(load_rows(str(tmp_path / "x.arrow"))) == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [("line", ["a", "b", "c"]), ("paragraph", ["a\nb", "c"]), ("file", ["a\nb\n\n\nc\n"])],
)
def test_a_text_file_is_read_as_lines_paragraphs_or_one_row(
    tmp_path: Path, rows: str, expected: list[str]
) -> None:
    (tmp_path / "x.txt").write_text("a\nb\n\n\nc\n")
    assert texts(load_rows(str(tmp_path / "x.txt"), config=DataConfig(text_rows=rows))) == expected


def test_the_home_directory_may_be_abbreviated_as_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "x.jsonl", "a")
    assert texts(load_rows("~/x.jsonl")) == ["a"]


def test_the_requested_subset_and_split_are_downloaded_from_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def answer(path: str, **how: Any) -> list[dict[str, str]]:
        asked.update(how, path=path)
        return [{"text": "a"}]

    monkeypatch.setattr("datasets.load_dataset", answer)  # the Hub is not available
    source = DataSource("owner/name", split="train[:1%]", subset="de", revision="v2")
    assert texts(load_rows(source)) == ["a"]
    assert asked == {
        "path": "owner/name",
        "name": "de",
        "split": "train[:1%]",
        "revision": "v2",
        "streaming": False,
    }


def test_a_hub_error_while_reading_is_reported_with_the_location(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "a"}
        raise ConnectionResetError("gone")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows())  # the Hub is not available
    assert refused("owner/name") == "after owner/name row 1 the hub could not be read: gone"


NUMBERS = st.one_of(st.none(), st.integers(-100, 100))


@given(st.integers(1, 300), NUMBERS, NUMBERS, st.sampled_from(["", "%"]), st.integers(0, 1))
def test_a_part_of_a_split_has_the_rows_that_datasets_selects(
    count: int, first: int | None, end: int | None, sign: str, both: int
) -> None:
    begins = "" if first is None else f"{first}{sign * both}"
    split = f"train[{begins}:{'' if end is None else f'{end}{sign}'}]"
    (there,) = datasets.ReadInstruction.from_spec(split).to_absolute({"train": count})
    name, part = Slice.of(split)
    assert name == "train"
    assert part is not None
    assert list(part.select(range(count), count)) == list(range(there.from_ or 0, there.to))


def test_a_part_of_several_files_is_one_of_all_their_rows(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train-1.jsonl", "a", "b")
    write(tmp_path / "d" / "train-2.jsonl", "c", "d")
    write(tmp_path / "d" / "test.jsonl", "t")
    assert texts(load_rows(DataSource(str(tmp_path / "d"), split="train[50%:]"))) == ["c", "d"]
    assert texts(load_rows(DataSource(f"{tmp_path}/d/train*.jsonl", split="train[1:3]"))) == ["b", "c"]
    assert texts(load_rows(DataSource(str(tmp_path / "d"), split="test[:1]"))) == ["t"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt", "x.parquet", "saved"])
def test_a_split_that_a_file_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    rows = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    if name == "saved":
        rows.save_to_disk(path)
    elif name == "x.json":
        Path(path).write_text(json.dumps(rows.to_list()))
    elif name == "x.parquet":
        rows.to_parquet(path)
    else:
        write(Path(path), "a", "b") if name == "x.jsonl" else Path(path).write_text("text\na\n")
    assert "has no split extra; leave out the split" in refused(DataSource(path, split="extra"))
    assert load_rows(DataSource(path, split="train")).rows == load_rows(path).rows


@pytest.mark.parametrize(
    "split", ["train+test", "train[:10", "train[a:b]", "train[:10%](pct1_dropremainder)"]
)
def test_what_is_no_part_of_one_split_is_refused(tmp_path: Path, split: str) -> None:
    write(tmp_path / "x.jsonl", "a")
    assert "write one split, as in train[:10%]" in refused(DataSource(str(tmp_path / "x.jsonl"), split=split))


def test_a_stream_from_the_hub_starts_and_ends_at_the_selected_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(path: str, *, split: str, **how: Any) -> list[dict[str, str]]:
        asked.append(split)
        return [{"text": str(number)} for number in range(9)]

    monkeypatch.setattr(datasets, "load_dataset", answer)
    source = DataSource("owner/name", split="train[2:4]")
    rows = Origin.of(source, "train").rows("line", streaming=True)
    assert [row["text"] for _, row in rows] == ["2", "3"]  # type: ignore[index]
    assert asked == ["train"]
    with pytest.raises(DataError, match="needs the number of rows"):
        list(Origin.of(DataSource("owner/name", split="train[:1%]"), "train").rows("line", streaming=True))


def test_a_part_without_rows_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", "a", "b")
    told = refused(DataSource(str(tmp_path / "x.jsonl"), split="train[:1%]"))
    assert told == f"{tmp_path}/x.jsonl has no rows in the split train[:1%]."
