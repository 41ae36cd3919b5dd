"""`fmstune init` writes a configuration that passes a dry run, based on the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from fmstune.cli.main import main
from fmstune.config.load.load import load
from fmstune.run.proposal import DataFacts, Proposal, _inline, as_toml, inspect_rows
from tests.support.terminals import in_terminal
from tests.support.tuned import dry_run_file

CHAT = [{"role": "user", "content": "Is it red?"}, {"role": "assistant", "content": "Yes."}]
ROWS: dict[str, Any] = {
    "sft": {"messages": CHAT},
    "dpo": {"prompt": "Is it red?", "chosen": "Yes.", "rejected": "No."},
    "kto": {"prompt": "Is it red?", "completion": "Yes.", "label": True},
}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, row: Any, count: int = 80) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for _ in range(count)))


def fmstune(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    return int(end.value.code or 0)


@pytest.mark.parametrize("method", ROWS)
def test_the_columns_of_the_data_select_the_method_and_the_file_passes_a_dry_run(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("train.jsonl", ROWS[method])
    assert fmstune("init", "--model", "demo") == 0
    assert capsys.readouterr().out == "fmstune.toml\n"
    config = load(Path("fmstune.toml"))
    assert (config.run.method, config.data.train[0].path, config.data.eval_fraction) == (
        method, "train.jsonl", 0.1,
    )  # fmt: skip
    assert "ready for" in dry_run_file("fmstune.toml")


def test_without_a_terminal_nothing_is_asked_and_every_guess_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fmstune("init") == 0  # in an empty directory: the demo
    config = load(Path("fmstune.toml"))
    assert (config.model.path, config.data.train[0].path, config.data.eval[0].path) == (
        "demo",
        "demo",
        "demo",
    )
    assert fmstune("init") == 2
    assert "fmstune.toml already exists" in capsys.readouterr().err
    write("chats.jsonl", ROWS["sft"])
    assert fmstune("init", "--overwrite") == 2
    assert "no model is given for 'chats.jsonl'; add --model MODEL" in capsys.readouterr().err
    assert fmstune("init", "--overwrite", "--model", "demo", "--data", "nope.jsonl") == 2
    assert "nope.jsonl" in capsys.readouterr().err
    assert fmstune("init", "--overwrite", "--model", "demo", "--tracker", "aimm") == 2
    assert "Did you mean aim?" in capsys.readouterr().err
    assert load(Path("fmstune.toml")).model.path == "demo"


def test_in_a_terminal_it_asks_for_what_no_flag_sets() -> None:
    write("my data.jsonl", ROWS["sft"])
    seen = in_terminal(["init", "--model", "demo"], "\ny\nfile\n")
    assert "training data (files, or hub names) ['my data.jsonl']:" in seen
    assert "80 rows (messages)" in seen
    config = load(Path("fmstune.toml"))
    assert (config.data.train[0].path, config.lora.enabled) == ("my data.jsonl", True)
    assert config.tracking.trackers == ("file",)


def test_settings_that_the_rows_need_are_used_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text("nr;frage;antwort\n" + "1;Where is it?;On its way.\n" * 60)
    columns = 'data.columns={question="frage", answer="antwort"}'
    assert fmstune("init", "--model", "demo", "--data", "t.csv") == 2
    assert f"--set '{columns}'" in capsys.readouterr().err
    flags = (
        "--set",
        columns,
        "--skip-bad-rows",
        "--set",
        "samples.rows=2",
        "--set",
        "training.max_length=64",
    )
    assert fmstune("init", "--model", "demo", "--data", "t.csv", *flags) == 0
    config = load(Path("fmstune.toml"))
    assert (config.data.columns, config.data.skip_bad_rows) == (
        {"question": "frage", "answer": "antwort"},
        True,
    )
    assert (config.samples.rows, config.training["max_length"], config.data.eval_fraction) == (2, 64, 0.1)
    template = "Q: {frage}\nA: {antwort}"
    assert fmstune("init", "--overwrite", "--model", "demo", "--data", "t.csv", "--template", template) == 0
    assert load(Path("fmstune.toml")).data.template == template


@given(
    st.recursive(
        st.one_of(st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text()),
        lambda each: st.one_of(st.lists(each, max_size=3), st.dictionaries(st.text(), each, max_size=3)),
        max_leaves=5,
    )
)
def test_any_value_of_a_setting_round_trips_through_the_file(value: Any) -> None:
    facts = DataFacts("messages", rows=80, whole=True, known=True)
    sets = ["data.columns=" + _inline({"question": value}), f"params.x={_inline(value)}"]
    written = tomli.loads(as_toml(Proposal("m", ["d"], [], "sft", False, [], facts, sets)))
    assert written["data"]["columns"] == {"question": value}
    assert written["params"]["x"] == value


def test_a_validation_split_of_the_data_is_the_evaluation_data() -> None:
    Path("data").mkdir()
    for split in ("train", "valid", "test"):
        write(f"data/{split}.jsonl", ROWS["sft"])
    assert fmstune("init", "--model", "demo", "--data", "data") == 0
    config = load(Path("fmstune.toml"))
    assert ([each.path for each in config.data.eval], config.data.eval_fraction) == (["data"], 0.0)
    assert fmstune("init", "--overwrite", "--model", "demo", "--data", "data/train.jsonl") == 0
    assert load(Path("fmstune.toml")).data.eval_fraction == 0.1


def test_small_data_is_not_split_and_long_rows_raise_the_maximum_length() -> None:
    row = {"prompt": "?", "completion": "word " * 1500}
    write("train.jsonl", row, count=20)
    looked = inspect_rows(["train.jsonl"], None)
    text = as_toml(Proposal("m", ["train.jsonl"], [], looked.method, True, [], looked))
    assert (
        "# eval_fraction = 0.1  # the fraction held out for evaluation; off, since there are few rows" in text
    )
    assert tomli.loads(text)["training"]["max_length"] == 4096
    assert tomli.loads(text)["training"]["learning_rate"] == 2e-4


@pytest.mark.parametrize("path", ['a"b', "a\\b", "ä ö", "a'b\x7f", "#x"])
def test_any_path_round_trips_through_the_file(path: str) -> None:
    looked = inspect_rows(["demo"], None)
    assert tomli.loads(as_toml(Proposal(path, [path, "b"], [path], "sft", False, [], looked)))["data"] == {
        "train": [path, "b"], "eval": path,
    }  # fmt: skip
