"""The table [data]: sources in every supported notation, and error messages for invalid ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.inspect.dump import to_toml
from fmstune.config.load.load import load
from fmstune.config.schema.tables import DataConfig, DataSource
from tests.support.loading import load_text, refusal

MODEL = '[model]\npath = "demo"\n'
FLAGS = [("model.path", "demo", "--model")]


@pytest.mark.parametrize(
    ("written", "sources"),
    [
        ('[data]\ntrain = "org/a"', (DataSource("org/a"),)),
        ('[data]\ntrain = ["org/a", "org/b"]', (DataSource("org/a"), DataSource("org/b"))),
        ('[data.train]\npath = "org/a"\nsplit = "x"', (DataSource("org/a", split="x"),)),
        (
            '[[data.train]]\npath = "org/a"\nweight = 0.5\n[[data.train]]\npath = "org/b"\nweight = 1\n'
            'subset = "de"\nmax_rows = 9\ncolumns = {prompt = "q"}',
            (
                DataSource("org/a", weight=0.5),
                DataSource("org/b", weight=1, subset="de", max_rows=9, columns={"prompt": "q"}),
            ),
        ),
        ('[data]\ntrain = ["org/a", {path = "org/b", template = "{x}"}]', None),
    ],
)
def test_sources_are_a_string_a_list_or_tables(
    tmp_path: Path, written: str, sources: tuple[DataSource, ...] | None
) -> None:
    expected = sources or (DataSource("org/a"), DataSource("org/b", template="{x}"))
    assert load_text(tmp_path, MODEL + written).data.train == expected


def test_repeated_flags_are_several_sources(tmp_path: Path) -> None:
    flags = [*FLAGS, ("data.train", ("org/a", "org/b"), "--data"), ("data.eval", ("org/c",), "--eval-data")]
    data = load(None, flags, cwd=tmp_path).data
    assert data.train == (DataSource("org/a"), DataSource("org/b"))
    assert data.eval == (DataSource("org/c"),)


def test_columns_can_be_set_one_by_one(tmp_path: Path) -> None:
    sets = ["data.train=org/a", "data.columns.prompt=q", "data.columns.completion=a"]
    assert load(None, FLAGS, sets, cwd=tmp_path).data.columns == {"prompt": "q", "completion": "a"}


def test_other_settings_that_are_tables_can_be_set_one_by_one(tmp_path: Path) -> None:
    sets = [
        "model.chat_template_kwargs.enable_thinking=false",
        "model.chat_template_kwargs.reasoning_effort=low",
        "training.lr_scheduler_type=cosine_with_restarts",
        "training.lr_scheduler_kwargs.num_cycles=2",
    ]
    config = load(None, FLAGS, ["data.train=org/a", *sets], cwd=tmp_path)
    assert config.model.chat_template_kwargs == {"enable_thinking": False, "reasoning_effort": "low"}
    assert config.training["lr_scheduler_kwargs"] == {"num_cycles": 2}


letters = st.characters(exclude_categories=["Cs"], exclude_characters="/*?[.\0")
names = st.text(letters, min_size=1, max_size=9).map("org/{}".format)
tables = st.fixed_dictionaries(
    {"path": names},
    optional={
        "split": st.text(max_size=5),
        "subset": st.text(max_size=5),
        "max_rows": st.integers(1, 9),
        "columns": st.dictionaries(st.sampled_from(["prompt", "text"]), st.text(max_size=5)),
    },
)


@given(st.lists(tables, min_size=1, max_size=3), st.lists(tables, max_size=2), st.none() | st.floats(0.1, 9))
def test_written_sources_are_read_back(
    train: list[dict[str, Any]], evaluation: list[dict[str, Any]], weight: float | None
) -> None:
    if weight is not None:
        train = [{**table, "weight": weight} for table in train]
    with tempfile.TemporaryDirectory() as folder:
        flags = [*FLAGS, ("data.train", train, "--data"), ("data.eval", evaluation, "--eval-data")]
        config = load(None, flags, cwd=Path(folder))
        (Path(folder) / "config.toml").write_text(to_toml(config), encoding="utf-8", newline="\n")
        assert load(Path(folder) / "config.toml", cwd=Path(folder)).data == config.data


def test_sources_in_python_have_the_same_notations() -> None:
    assert DataConfig(train="a.jsonl", eval=["b", {"path": "c", "weight": 1.0}]) == DataConfig(
        (DataSource("a.jsonl"),), (DataSource("b"), DataSource("c", weight=1.0))
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "train = 7",
            "fmstune.toml:4: data.train = 7 is an integer; it takes a string, a list of strings, or",
        ),
        ("train = [7]", "data.train is an integer; a source is a string, or a table with a path"),
        ('train = ["org/a", ""]', "data.train[2] is empty"),
        ('train = {pth = "org/a"}', "there is no setting data.train.pth. Did you mean path?"),
        ("train = {weight = 1}", "data.train.path is missing"),
        (
            'train = {path = "org/a", weight = 0}',
            "data.train.weight = 0 is out of range; it must be more than 0",
        ),
        (
            'train = [{path = "org/a", weight = 1}, "org/b"]',
            "data.train[2] has no weight, but other sources have",
        ),
        (
            'train = "org/a"\neval = {path = "org/b", weight = 1}',
            "data.eval: evaluation data does not take a weight",
        ),
        ('train = "*.jsonl"', "data.train = '*.jsonl': no file matches it"),
        ('train = "empty"', "data.train = 'empty': the directory has no file in a supported format"),
        ('train = ["org/a", "b.jsonl"]', "data.train[2] = 'b.jsonl': there is no such file"),
        ('train = "notes.docx"', "notes.docx has an unsupported format (.docx)"),
        ('train = "org/a"\ntemplate = "Q A"', "fmstune.toml:5: data.template = 'Q A': it has no columns"),
        ('train = "org/a"\ntemplate = "{q} {a"', "and double the braces of the text"),
        ('train = "org/a"\ntemplate = "{q:3}"', "{q:3} is not a column; write columns as {question}"),
        ('train = "org/a"\ntemplate = "{}"', "{} is not a column"),
        (
            'train = "org/a"\ncolumns = {promt = "q"}',
            "fmstune has no column promt; write fmstune's name = the name",
        ),
        ('train = "org/a"\ncolumns = {promt = "q"}', "Did you mean prompt?"),
        ('train = "org/a"\ncolumns = {prompt = 7}', "it takes a table"),
        ('train = "org/a"\ntemplate = "{q}"\ncolumns = {prompt = "q"}', "set data.template or data.columns"),
        ('train = {path = "org/a", template = "x"}', "data.train.template = 'x': it has no columns"),
        (
            'train = "org/a"\nhandler = "my_code"',
            "data.handler = 'my_code' is not of the form module:function",
        ),
        (
            'train = "org/a"\nstreaming = true',
            "needs a number of steps, since the number of rows is not known",
        ),
        (
            'train = "org/a"\nstreaming = true\neval_fraction = 0.1\n[training]\nmax_steps = 3',
            "data.eval_fraction needs the number of rows, which is not known with data.streaming",
        ),
        ('train = "org/a"\nshuffle_buffer = 0', "data.shuffle_buffer = 0 is out of range"),
        ('train = "org/a"\ntext_rows = "lines"', "is not one of line, paragraph, file. Did you mean line?"),
    ],
)
def test_errors_are_reported_with_their_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.docx").touch()
    assert says in refusal(tmp_path, f"{MODEL}[data]\n{text}")


def test_a_pattern_that_the_shell_has_expanded_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "a"}')
    told = refusal(tmp_path, config_path=tmp_path / "b.jsonl")
    assert told.endswith("a glob in quotes: --data '*.jsonl'.")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chatm", "there is no such template. Did you mean chatml? Available: alpaca, chatml, gemma"),
        ("vicuna", "there is no such template. Available: alpaca, chatml"),
    ],
)
def test_an_unknown_chat_template_name_lists_the_known_ones(tmp_path: Path, name: str, says: str) -> None:
    assert says in refusal(tmp_path, sets=[f"model.chat_template={name}"])


def test_existing_files_are_found_without_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train.jsonl").touch()
    for name in ("x", "x/train.jsonl", "x/*.jsonl", "**/train.jsonl"):
        assert load(None, [*FLAGS, ("data.train", name, "--data")], cwd=tmp_path).data.train[0].path == name
