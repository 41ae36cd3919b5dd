"""Prepared data are cached by everything that they depend on, prepared once, and rebuilt when damaged."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fmstune import demo
from fmstune.config.schema.data import DataConfig
from fmstune.data.cache import cache_directory, prepare_once
from fmstune.data.prepare import PreparedData
from tests.support.commands import start
from tests.support.waiting import wait_for

TOKENIZER = AutoTokenizer.from_pretrained(demo.model_dir())


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMSTUNE_CACHE", str(tmp_path / "cache"))
    write("a.jsonl", "one", "two", "three")
    write("b.jsonl", "four", "five")


def write(name: str, *texts: str) -> None:
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def prepared(length: int | None = 64, seed: int = 1, worth: float = 0.0, **settings: Any) -> PreparedData:
    config = DataConfig(**{"train": "a.jsonl", "eval": "b.jsonl", **settings})
    return prepare_once(config, TOKENIZER, length, seed, worth=worth)


def entries() -> list[Path]:
    return [each for each in cache_directory().iterdir() if each.is_dir()]


def rows(data: PreparedData) -> list[Any]:
    assert data.eval is not None
    return [*data.train, *data.eval]


def test_the_second_preparation_reads_the_same_rows_from_the_cache() -> None:
    first, second = prepared(), prepared()
    assert (first.summary.prepared_before, second.summary.prepared_before) == (False, True)
    assert rows(first) == rows(second)
    assert list(first.places) == list(second.places) == [f"a.jsonl line {n}" for n in (1, 2, 3)]
    assert dataclasses.replace(second.summary, prepared_before=False) == first.summary
    assert "prepared before" in second.summary.line()


@pytest.mark.parametrize(
    "change",
    [{"length": 3}, {"train_on": "all"}, {"max_rows": 2}, {"train": "b.jsonl"}, {"eval": ""},
     {"eval": "", "eval_fraction": 0.4}],
    ids=str,
)  # fmt: skip
def test_another_setting_is_another_cache_entry(change: dict[str, Any]) -> None:
    prepared()
    assert not prepared(**change).summary.prepared_before


def test_another_seed_is_another_cache_entry_if_rows_are_held_out_by_it() -> None:
    settings = {"eval": "", "eval_fraction": 0.4}
    prepared(**settings)
    assert not prepared(seed=2, **settings).summary.prepared_before


def test_changed_content_under_the_same_name_and_time_is_prepared_again() -> None:
    prepared()
    before = Path("a.jsonl").stat()
    write("a.jsonl", "one", "two", "thrEE")
    os.utime("a.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    again = prepared()
    assert not again.summary.prepared_before
    assert "thrEE" in TOKENIZER.decode(again.train[2]["input_ids"])


def test_another_chat_template_is_another_cache_entry() -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    Path("a.jsonl").write_text(json.dumps(chat) + "\n")
    prepared(eval="")
    other = AutoTokenizer.from_pretrained(demo.model_dir())
    other.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    made = prepare_once(DataConfig(train="a.jsonl"), other, 64, 1, worth=0.0)
    assert not made.summary.prepared_before
    assert "[assistant]b" in other.decode(made.train[0]["input_ids"])


@pytest.mark.parametrize("how", ["cut", "emptied", "no summary", "not json"])
def test_a_damaged_cache_entry_is_rebuilt(how: str) -> None:
    whole = rows(prepared())
    (entry,) = entries()
    if how in ("cut", "emptied"):
        for file in entry.glob("*/*.arrow"):
            file.write_bytes(file.read_bytes()[:-40] if how == "cut" else b"")
    elif how == "no summary":
        (entry / "summary.json").unlink()
    else:
        (entry / "summary.json").write_text("{")
    again = prepared()
    assert rows(again) == whole
    assert not again.summary.prepared_before
    assert prepared().summary.prepared_before


def test_fast_preparations_are_not_cached_and_nothing_is_if_the_cache_is_off() -> None:
    prepared(worth=60.0)
    assert entries() == []
    prepared(cache=False)
    prepared(streaming=True)
    assert entries() == []


def test_cached_data_report_their_bad_rows_each_time() -> None:
    with Path("a.jsonl").open("a") as file:
        file.write("{\n")
    for _ in range(2):
        data = prepared(skip_bad_rows=True)
        assert (data.bad.count, data.summary.prepared_before) == (1, False)


def test_a_cache_that_cannot_be_written_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSTUNE_CACHE", "/dev/null/cache")
    assert len(prepared().train) == 3


def test_unused_cache_entries_are_removed() -> None:
    prepared()
    (old,) = entries()
    os.utime(old, (time.time() - 40 * 24 * 3600,) * 2)
    prepared(length=10)
    assert old not in entries()
    assert len(entries()) == 1


def test_of_two_processes_with_the_same_data_only_one_prepares(tmp_path: Path) -> None:
    script = tmp_path / "prepares.py"
    script.write_text(
        "from tests.data.test_cache import *\n"
        "print('before' if prepared().summary.prepared_before else 'made')"
    )
    both = [start(cwd=Path.cwd(), module=str(script)) for _ in range(2)]
    assert sorted(each.communicate()[0].split()[-1] for each in both) == ["before", "made"]


def test_waiting_for_another_process_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    prepared()
    (path,) = cache_directory().glob("*.lock")
    with path.open() as lock, ThreadPoolExecutor() as threads:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threads.submit(prepared)
        wait_for(lambda: "another process is preparing the same data" in caplog.text)
        assert not waiting.done()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert waiting.result().summary.prepared_before
