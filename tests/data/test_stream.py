"""Streamed data have the same rows as data in memory, in a different order, and never end."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fmstune.config.load.load import load
from fmstune.config.schema.tables import DataConfig, DataSource, ModelConfig
from fmstune.console import RunConsole
from fmstune.data.changed import recorded_params
from fmstune.data.prepare import prepare
from fmstune.data.stream_counts import read_counts, with_counts
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer
from fmstune.run.run import run

pytestmark = pytest.mark.usefixtures("small_demo")

TOKENIZER = load_tokenizer(ModelConfig(path="demo"))


def write(path: Path, count: int) -> str:
    path.write_text("".join(f"{json.dumps({'text': f'{path.stem} {n}'})}\n" for n in range(count)))
    return str(path)


def streamed(*sources: DataSource | str, most: int, buffer: int = 4, seed: int = 1) -> list[str]:
    config = DataConfig(train=sources, streaming=True, shuffle_buffer=buffer)  # type: ignore[arg-type]
    data = prepare(config, TOKENIZER, None, seed).train
    return [TOKENIZER.decode(row["input_ids"]).removesuffix("<|im_end|>") for row in islice(data, most)]


def tune(folder: Path, *sets: str, resume: str | None = None) -> str:
    sets = ("data.streaming=true", "data.shuffle_buffer=8", "model.path=demo", *sets)
    shared = ("training.per_device_train_batch_size=4", f"training.output_dir={folder}")
    config = load(None, sets=[*sets, *shared])
    screen = io.StringIO()
    run(config, RunConsole(Console(file=screen, width=300)), resume=resume)
    return screen.getvalue()


def weights(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def test_a_stream_has_the_rows_and_labels_of_data_in_memory(tmp_path: Path) -> None:
    whole = [
        row | {"loss_weights": None}  # a later row may have weights
        for row in prepare(DataConfig(train="demo"), TOKENIZER, 64, 1).train.to_list()
    ]
    config = DataConfig(train="demo", streaming=True)
    found = list(islice(prepare(config, TOKENIZER, 64, 1).train, len(whole)))
    key = json.dumps
    assert sorted(key(row) for row in found) == sorted(key(row) for row in whole)
    assert found != whole
    ordered = DataConfig(train="demo", streaming=True, shuffle_buffer=1)
    assert list(islice(prepare(ordered, TOKENIZER, 64, 1).train, len(whole))) == whole


def test_each_pass_has_its_own_order_drawn_from_the_seed(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", 10)
    rows = streamed(a, most=100)
    for first in range(0, 100, 10):
        assert sorted(rows[first : first + 10]) == [f"a {n}" for n in range(10)], (
            "each pass has each row once"
        )
    assert len({tuple(rows[first : first + 10]) for first in range(0, 100, 10)}) > 1, "in different orders"
    assert rows[:10] != [f"a {n}" for n in range(10)]
    assert streamed(a, most=100) == rows
    assert streamed(a, most=100, seed=2) != rows


def test_weighted_sources_are_sampled_with_these_probabilities(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 7), write(tmp_path / "b.jsonl", 3)
    rows = streamed(DataSource(a, weight=3), DataSource(b, weight=1), most=800)
    assert Counter(row[0] for row in rows)["b"] == pytest.approx(200, abs=50)
    joined = streamed(a, b, most=20, buffer=1)
    assert [row[0] for row in joined] == [*"aaaaaaabbb"] * 2


def chats(path: Path, count: int) -> str:
    """Chats; the template is compiled when the first of them is read."""
    rows = [
        [{"role": "user", "content": f"{path.stem} {n}"}, {"role": "assistant", "content": "yes"}]
        for n in range(count)
    ]
    path.write_text("".join(f"{json.dumps({'messages': row})}\n" for row in rows))
    return str(path)


def test_chats_of_weighted_sources_are_mixed(tmp_path: Path) -> None:
    a, b = (chats(tmp_path / f"{name}.jsonl", 5) for name in "ab")
    rows = streamed(DataSource(a, weight=1), DataSource(b, weight=1), most=40)
    assert {text for row in rows for text in re.findall(r"[ab] \d", row)} == {
        f"{name} {n}" for name in "ab" for n in range(5)
    }


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "has no rows"),
        ('{"question": "a"}', "line 1: the columns are question"),
        ('{"prompt": "' + "a " * 90 + '", "completion": " b"}', "raise training.max_length"),
    ],
)
def test_errors_in_the_first_rows_are_reported_at_the_start(tmp_path: Path, lines: str, says: str) -> None:
    (tmp_path / "x.jsonl").write_text(lines)
    with pytest.raises(DataError, match=says):
        prepare(DataConfig(train=str(tmp_path / "x.jsonl"), streaming=True), TOKENIZER, 16, 1)


def test_a_resumed_run_continues_where_its_data_stopped(tmp_path: Path) -> None:
    """More steps than rows, so that the data repeat, once before and once after the stop."""
    data = f"data.train={write(tmp_path / 'a.jsonl', 22)}"
    sets = (data, "training.save_strategy=steps", "training.save_steps=8", "training.max_steps=16")
    shown = tune(tmp_path / "whole", *sets)
    assert "a.jsonl · streamed (text)" in shown
    shown = tune(tmp_path / "parts", *sets, resume=str(tmp_path / "whole" / "checkpoint-8"))
    assert "resume   from " in shown
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_ends_the_run_with_its_location_or_is_listed_once(tmp_path: Path, workers: int) -> None:
    source = write(tmp_path / "a.jsonl", 6)
    with Path(source).open("a") as file:
        file.write("{\n")
    how: Any = (f"data.train={source}", f"training.dataloader_num_workers={workers}", "training.max_steps=4")
    with pytest.raises(DataError) as caught:
        tune(tmp_path / "run", *how)
    assert str(caught.value).startswith(f"{source} line 7: this is not valid JSON")
    assert "\n" not in str(caught.value)
    tune(tmp_path / "other", *how, "data.skip_bad_rows=true")
    (entry,) = (tmp_path / "other" / "skipped_rows.jsonl").read_text().splitlines()
    assert json.loads(entry)["place"] == f"{source} line 7"


def test_a_stream_can_be_packed_and_evaluated_on_rows_in_memory(tmp_path: Path) -> None:
    evaluation = f"data.eval={write(tmp_path / 'b.jsonl', 3)}"
    shown = tune(
        tmp_path / "run",
        f"data.train={write(tmp_path / 'a.jsonl', 30)}",
        evaluation,
        "training.packing=true",
        "training.max_length=32",
        "training.max_steps=2",
        "training.eval_strategy=steps",
        "training.eval_steps=2",
    )
    assert "eval 3 rows" in shown
    assert "2/2" in shown


def mixed_rows(path: Path, count: int) -> str:
    """Rows of prompts: from the 120th on, some have an unused column, an answer that is dropped or truncated,
    or are damaged."""
    lines = []
    for number in range(count):
        row = {"prompt": f"q {number}", "completion": f" a {number}"}
        if number >= 120 and number % 2:
            row["extra"] = "e"
        if number in (130, 140):
            row["prompt"] = "long " * 90
        if number in (150, 160, 170):
            row["completion"] = " long" * 90
        lines.append("{" if number == 180 else json.dumps(row))
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_unused_parts_of_a_stream_are_reported_at_their_first_row_and_counted_at_the_end(
    tmp_path: Path, workers: int
) -> None:
    source = mixed_rows(tmp_path / "a.jsonl", 200)
    shown = tune(
        tmp_path / "run",
        f"data.train={source}",
        "data.skip_bad_rows=true",
        "training.max_length=48",
        f"training.dataloader_num_workers={workers}",
        "training.max_steps=55",  # more than the number of rows: some repeat, and count once
    )
    before, _, end = shown.partition("data     ")[2].partition("data     ")
    assert f"the column extra of {source} is not used; the first row is {source} line 122" in before
    assert f"rows are truncated to training.max_length; the first row is {source} line 151" in before
    assert (
        f"truncated to training.max_length, they have no token to train on; the first row is {source} line"
        in before
    )
    assert f"bad rows are left out; the first row is {source} line 181: this is not valid JSON" in before
    assert "all 200 rows read" in end
    assert "3 rows cut · 2 rows left out (too long for training.max_length) · 1 bad row skipped" in end
    assert "columns not used: extra (40 rows)" in end
    card = (tmp_path / "run" / "README.md").read_text()
    assert "all 200 rows read" in card
    assert "| not used | columns not used: extra (40 rows) |" in card
    (entry,) = (tmp_path / "run" / "skipped_rows.jsonl").read_text().splitlines()
    assert json.loads(entry)["place"] == f"{source} line 181"
    assert not (tmp_path / "run" / "stream_counts").exists()
    params = recorded_params(tmp_path / "run")["data"]
    assert (params["read"], params["truncated"], params["dropped"], params["skipped"]) == (200, 3, 2, 1)


def test_for_a_partly_read_stream_the_number_of_rows_is_reported(tmp_path: Path) -> None:
    sources = [DataSource(mixed_rows(tmp_path / f"{name}.jsonl", 2000), weight=1) for name in "ab"]
    config = DataConfig(train=sources, streaming=True, skip_bad_rows=True, shuffle_buffer=1)
    data = prepare(config, TOKENIZER, 48, 1, tmp_path / "skipped_rows.jsonl")
    trained = [TOKENIZER.decode(row["input_ids"]) for row in islice(data.train, 300)]
    found = with_counts(data.summary, read_counts(tmp_path))
    assert len(trained) <= found.rows <= found.read - found.dropped < 700
    assert not found.whole
    assert f"{found.read} rows read" in found.line()
    assert all(line.endswith(f"(of the {found.read} rows that were read)") for line in found.unused_lines())


kinds = st.lists(st.sampled_from(["plain", "extra", "cut", "dropped", "bad"]), min_size=1, max_size=200)


@given(kinds, st.integers(1, 250), st.integers(1, 30), st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_unused_parts_are_counted_over_all_rows_taken_from_a_stream(
    tmp_path: Path, drawn: list[str], taken: int, buffer: int, peeked: bool
) -> None:
    rows = {
        "plain": '{"prompt": "q", "completion": " a"}',
        "extra": '{"prompt": "q", "completion": " a", "extra": 1}',
        "cut": json.dumps({"prompt": "q", "completion": " long" * 50}),
        "dropped": json.dumps({"prompt": "long " * 50, "completion": " a"}),
        "bad": "{",
    }
    drawn = ["plain", *drawn]
    (tmp_path / "a.jsonl").write_text("".join(f"{rows[kind]}\n" for kind in drawn))
    config = DataConfig(
        train=str(tmp_path / "a.jsonl"), streaming=True, skip_bad_rows=True, shuffle_buffer=buffer
    )
    data = prepare(config, TOKENIZER, 16, 1, tmp_path / "skipped_rows.jsonl")
    if peeked:
        next(iter(data.train))
    assert len(list(islice(data.train, taken))) == taken
    (counts,) = read_counts(tmp_path)
    read = counts.figures["read"]
    until = Counter(drawn[:read])
    assert counts.figures["rows"] >= min(taken, len(drawn) - until["dropped"] - until["bad"])
    assert not counts.whole or read == len(drawn)
    figures = (counts.figures.get(name, 0) for name in ("truncated", "dropped", "skipped"))
    assert (*figures,) == (until["cut"], until["dropped"], until["bad"])
    assert [entry.rows for entry in counts.unused if entry.column] == [until["extra"]] * bool(until["extra"])
    listed = tmp_path / "skipped_rows.jsonl"
    assert len(listed.read_text().splitlines() if listed.exists() else []) == until["bad"]


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward"])
def test_a_stream_is_rehearsed_and_its_batch_found_with_worst_case_rows(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.tuned import dry_run_shown, tune, weights

    monkeypatch.chdir(tmp_path)
    stream = [f"run.method={method}", "data.train=demo", "model.path=demo", "data.streaming=true"]
    stream += ["training.max_length=64", "training.eval_strategy=no", "training.max_steps=2"]
    batch = ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2"]
    shown = tune("found", *stream, *batch, "run.auto_batch=true", "run.rehearse=always")
    assert "batch    4 rows at once, 1 time per update" in shown
    assert "rehearse a batch of the longest rows that may come" in shown
    assert "the run will take at most" in shown
    assert re.search(r"memory   peak .* [MG]B, estimated .* [MG]B", shown)
    tune("plain", *stream, "training.per_device_train_batch_size=4")
    assert weights("found") == weights("plain")
    assert "for rows of 64 tokens, the longest possible" in dry_run_shown(*stream)


def test_with_several_processes_only_the_main_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(rank: int, most: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        config = DataConfig(train=source, streaming=True, skip_bad_rows=True, shuffle_buffer=1)
        data = prepare(config, TOKENIZER, 48, 1, tmp_path / "skipped_rows.jsonl").train
        assert len(list(islice(data, most))) == most

    source = mixed_rows(tmp_path / "a.jsonl", 200)
    read(1, 190)
    assert read_counts(tmp_path) == []
    assert not (tmp_path / "skipped_rows.jsonl").exists()
    read(0, 190)
    (counts,) = read_counts(tmp_path)
    read(1, 70)
    assert read_counts(tmp_path) == [counts]
    assert len((tmp_path / "skipped_rows.jsonl").read_text().splitlines()) == 1
