"""Data that changed since the run started are reported when it is resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.changed import changed_data, recorded_params
from fmstune.data.files import opening
from fmstune.data.prepare import prepare
from fmstune.data.summary import DataSummary
from fmstune.models.load import load_tokenizer
from tests.support.made_runs import end_run, start_run
from tests.support.short_runs import train

DEMO = load_tokenizer(ModelConfig(path="demo"))


def summary(tmp_path: Path, train: list[str], evaluation: list[str] | None = None, **how: Any) -> DataSummary:
    for name, texts in (("a", train), ("b", evaluation or [])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    config = DataConfig(train=f"{tmp_path}/a.jsonl", eval=f"{tmp_path}/b.jsonl" if evaluation else "", **how)
    return prepare(config, DEMO, None, 1).summary


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ((["one two"],), (["one two"],), ""),
        ((["one two"],), (["one two", "three four"],), "a.jsonl (1 row before, 2 now)"),
        ((["one two"],), (["one six"],), "a.jsonl (1 row, as before, with other contents)"),
        (
            (["one two"], ["x y"]),
            (["one two"], ["x y", "z z"]),
            "b.jsonl to evaluate on (1 row before, 2 now)",
        ),
        ((["one two"], ["x y"]), (["one two"],), "b.jsonl to evaluate on (1 row before, 0 now)"),
    ],
)
def test_changes_are_reported_with_the_number_of_rows_before_and_now(
    tmp_path: Path, then: Any, now: Any, said: str
) -> None:
    before = json.loads(json.dumps(summary(tmp_path, *then).as_params()))  # as the journal stores it
    assert changed_data(before, summary(tmp_path, *now)).replace(f"{tmp_path}/", "") == said
    assert changed_data({}, summary(tmp_path, *now)) == ""


def saved(path: Path, text: str) -> str:
    Dataset.from_list([{"text": text}]).save_to_disk(str(path))
    return str(path)


def splits(path: Path, text: str) -> str:
    DatasetDict({"train": Dataset.from_list([{"text": text}])}).save_to_disk(str(path))
    return str(path)


def several(path: Path, text: str) -> list[str]:
    path.mkdir(exist_ok=True)
    for name, words in (("a", "one"), ("b", text)):
        (path / f"{name}.jsonl").write_text(json.dumps({"text": words}))
    return [f"{path}/a.jsonl", f"{path}/b.jsonl"]


@pytest.mark.parametrize("written", [saved, splits, several])
@pytest.mark.parametrize("where", ["train", "eval"])
def test_changed_text_is_detected_in_each_kind_of_source_though_the_counts_are_equal(
    tmp_path: Path, written: Any, where: str
) -> None:
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    other = {"train": "demo", "max_rows": 1} if where == "eval" else {}

    def now(text: str) -> DataSummary:
        source = written(tmp_path / "x", text)
        source = source if isinstance(source, str) or where == "eval" else source[1:] + source[:1]
        return prepare(DataConfig(**{**other, where: source}), DEMO, None, 1).summary

    before = json.loads(json.dumps(now("one").as_params()))
    assert changed_data(before, now("one")) == ""  # saved again, unchanged
    assert "with other contents" in changed_data(before, now("two"))


@pytest.mark.parametrize("written", [saved, splits, several])
def test_changed_text_in_a_stream_is_detected(tmp_path: Path, written: Any) -> None:
    def now(text: str) -> DataSummary:
        source = written(tmp_path / "x", text)
        return prepare(DataConfig(train=source, streaming=True), DEMO, None, 1).summary

    before = json.loads(json.dumps(now("one").as_params()))
    assert changed_data(before, now("one")) == ""
    said = "with other contents: as many of its rows are skipped as were trained on before"
    assert said in changed_data(before, now("two"))


@pytest.mark.parametrize("at", [0, 1 << 20, (4 << 20) - 1])
def test_a_large_file_is_identified_by_samples_of_it(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_WHOLE", 256 << 10)
    contents = bytearray(4 << 20)
    (file := tmp_path / "x").write_bytes(contents)
    before = opening.fingerprint_of([file])
    assert opening.fingerprint_of([file]) == before
    contents[at] = 1
    file.write_bytes(contents)
    assert opening.fingerprint_of([file]) != before
    file.write_bytes(bytes(len(contents) + 1))
    assert opening.fingerprint_of([file]) != before


def test_a_resumed_run_reports_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{json.dumps({'text': f'row number {number}'})}\n" for number in range(8))
    Path("a.jsonl").write_text(rows)
    sets = ["data.train=a.jsonl", "training.save_steps=1"]
    train(Path("run"), "training.max_steps=1", *sets)
    Path("a.jsonl").write_text(rows * 2)
    said = train(Path("run"), "training.max_steps=2", *sets, resume="run/checkpoint-1")
    assert "the data has changed since the run was started; using the current data" in said
    assert "a.jsonl (8 rows before, 16 now)" in said
    again = train(Path("run"), "training.max_steps=3", *sets, resume="run/checkpoint-2")
    assert "the data has changed" not in again


def test_params_of_the_user_named_data_as_well_are_no_change(tmp_path: Path) -> None:
    recorder = start_run(tmp_path / "run")
    recorder.set_params({"rows": 3, "eval_source": "b.jsonl"}, "data")
    recorder.set_params({"source": "tickets"}, "data")
    assert recorded_params(tmp_path / "run")["data"]["rows"] == 3
    end_run(recorder, None)
    again = start_run(tmp_path / "run")
    again.resumed(0)
    again.set_params({"rows": 3}, "data")
    again.set_params({"cleaned": True}, "data")
    end_run(again)
    assert recorded_params(tmp_path / "run") == {"data": {"rows": 3, "cleaned": True}}
