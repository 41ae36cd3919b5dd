"""Rows tokenized in several processes equal those of one process, in the same order, and so does everything
that is reported about them."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema.data import DataConfig
from fmstune.config.schema.tables import ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.tokens import tokenise, workers
from fmstune.data.tokens.lengths import scored_tokens, sequence_lengths
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError, RunError
from fmstune.models.load import load_tokenizer
from fmstune.system.threads import Processors

ROWS = 90


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ModelConfig(path="demo"))


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use three processes from the first few rows on."""
    monkeypatch.setattr(tokenise, "processors", lambda: Processors(3, "this test"))
    monkeypatch.setattr(tokenise, "_ALONE_SECONDS", 0.0)
    for module in (tokenise, workers):
        monkeypatch.setattr(module, "CHUNK", 7)


def chats(number: int, **more: Any) -> dict[str, Any]:
    asked = {"role": "user", "content": f"What is {number}?"}
    answer = {"role": "assistant", "content": f"It is {number % 13}."}
    return {"messages": [asked, answer] * (1 + number % 3), **more}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def outcome(data: PreparedData) -> tuple[Any, ...]:
    return data.train[:], data.summary, data.places, data.bad.count, data.bad.first


def alone(config: DataConfig, tokenizer: Any, listed: Path) -> PreparedData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenise, "processors", lambda: Processors(1, "this test"))
        return prepare(config, tokenizer, 40, 0, listed)


@pytest.mark.parametrize("most", [None, 50])
def test_rows_reports_and_bad_rows_equal_those_of_one_process(
    most: int | None, tokenizer: Any, several: None, tmp_path: Path
) -> None:
    rows: list[Any] = [chats(number, topic="t" if number % 5 else None) for number in range(ROWS)]
    rows[20]["messages"] = [{"role": "nobody", "content": "?"}]
    rows[61] = {"messages": []}
    rows[44]["messages"][1]["weight"] = 0.5
    config = DataConfig(
        train=str(written(tmp_path / "a.jsonl", rows)), skip_bad_rows=True, max_rows=most  # type: ignore[arg-type]
    )  # fmt: skip
    made = prepare(config, tokenizer, 40, 0, tmp_path / "listed.jsonl")
    listed = (tmp_path / "listed.jsonl").read_text()
    assert outcome(made) == outcome(alone(config, tokenizer, tmp_path / "again.jsonl"))
    assert listed == (tmp_path / "again.jsonl").read_text()
    assert not multiprocessing.active_children()


def test_a_worker_of_a_pool_which_may_start_no_processes_prepares_the_data_alone(
    tokenizer: Any, several: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(train=str(written(tmp_path / "a.jsonl", [chats(n) for n in range(ROWS)])))  # type: ignore[arg-type]
    monkeypatch.setitem(vars(multiprocessing.current_process())["_config"], "daemon", True)
    made = prepare(config, tokenizer, 40, 0)
    assert outcome(made) == outcome(alone(config, tokenizer, tmp_path / "again.jsonl"))


def test_the_first_bad_row_ends_the_run_with_its_location(
    tokenizer: Any, several: None, tmp_path: Path
) -> None:
    rows = [chats(number) for number in range(ROWS)]
    for number in (40, 70):
        rows[number]["messages"][0]["content"] = 7
    config = DataConfig(train=str(written(tmp_path / "a.jsonl", rows)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="line 41"):
        prepare(config, tokenizer, 40, 0)
    assert not multiprocessing.active_children()


def test_pairs_of_answers_equal_those_of_one_process(tokenizer: Any, several: None, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "chosen": f"yes {n}", "rejected": f"no {n % 4}"} for n in range(ROWS)]
    config = DataConfig(train=str(written(tmp_path / "a.jsonl", rows)))  # type: ignore[arg-type]
    made = prepare(config, tokenizer, 40, 0, method="dpo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenise, "processors", lambda: Processors(1, "this test"))
        assert outcome(made) == outcome(prepare(config, tokenizer, 40, 0, method="dpo"))


def test_a_killed_worker_is_reported(
    tokenizer: Any, several: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, parent = workers._answer, os.getpid()

    def dies(chunk: Any, *args: Any) -> Any:
        if os.getpid() != parent and any("line 60" in place for place, _ in chunk):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(chunk, *args)

    monkeypatch.setattr(workers, "_answer", dies)
    config = DataConfig(train=str(written(tmp_path / "a.jsonl", [chats(n) for n in range(ROWS)])))  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"prepares the data \(pid \d+\) was killed by SIGKILL"):
        prepare(config, tokenizer, 40, 0)
    assert not multiprocessing.active_children()


def test_a_handler_runs_in_one_process(tokenizer: Any, several: None, tmp_path: Path) -> None:
    seen: list[int] = []

    def counts(row: dict[str, Any]) -> dict[str, Any]:
        seen.append(os.getpid())
        return row

    config = DataConfig(train=str(written(tmp_path / "a.jsonl", [chats(n) for n in range(ROWS)])))  # type: ignore[arg-type]
    prepare(replace(config, handler=counts), tokenizer, 40, 0)  # type: ignore[arg-type]
    assert seen == [os.getpid()] * ROWS


def test_garbage_collection_is_rare_only_while_rows_are_tokenized(tokenizer: Any, tmp_path: Path) -> None:
    seen: set[int] = set()
    before = gc.get_threshold()

    def looks(row: dict[str, Any]) -> dict[str, Any]:
        seen.add(gc.get_threshold()[0])
        return row

    path = written(tmp_path / "a.jsonl", [chats(1), {"messages": []}])
    for skip in (True, False):
        config = replace(DataConfig(train=str(path), skip_bad_rows=skip), handler=looks)  # type: ignore[arg-type]
        with contextlib.suppress(DataError):
            prepare(config, tokenizer, 40, 0)
        assert gc.get_threshold() == before
    assert min(seen) > before[0]


def test_lengths_and_scored_tokens_of_rows_equal_those_counted_by_hand(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.jsonl", [chats(number) for number in range(20)])
    rows = prepare(DataConfig(train=str(path)), tokenizer, 40, 0).train.select([3, 1, 17])  # type: ignore[arg-type]
    assert sequence_lengths(rows).tolist() == [[len(ids)] for ids in rows["input_ids"]]
    assert scored_tokens(rows) == sum(label != IGNORED for row in rows["labels"] for label in row[1:])
