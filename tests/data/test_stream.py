"""Streamed data are the same rows as those in memory, in an order of their own, and go on for ever."""

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
from rich.console import Console

from fmstune.config.load.load import load
from fmstune.config.schema.tables import DataConfig, DataSource, ModelConfig
from fmstune.console import RunConsole
from fmstune.data.prepare import prepare
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer
from fmstune.run.run import run

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
    whole = prepare(DataConfig(train="demo"), TOKENIZER, 64, 1).train.to_list()
    config = DataConfig(train="demo", streaming=True)
    found = list(islice(prepare(config, TOKENIZER, 64, 1).train, len(whole)))
    key = json.dumps
    # The buffer of 1000 rows is more than there are: some rows come again before all have come once.
    assert {key(row) for row in found} <= {key(row) for row in whole}
    ordered = DataConfig(train="demo", streaming=True, shuffle_buffer=1)
    assert list(islice(prepare(ordered, TOKENIZER, 64, 1).train, len(whole))) == whole


def test_it_begins_again_in_an_order_drawn_from_the_seed(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", 10)
    rows = streamed(a, most=100)
    assert max(Counter(rows).values()) - min(Counter(rows).values()) <= 4
    assert rows[:10] != [f"a {n}" for n in range(10)]
    assert streamed(a, most=100) == rows
    assert streamed(a, most=100, seed=2) != rows


def test_sources_with_weights_are_drawn_with_these_probabilities(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 7), write(tmp_path / "b.jsonl", 3)
    rows = streamed(DataSource(a, weight=3), DataSource(b, weight=1), most=800)
    assert Counter(row[0] for row in rows)["b"] == pytest.approx(200, abs=50)
    joined = streamed(a, b, most=20, buffer=1)
    assert [row[0] for row in joined] == [*"aaaaaaabbb"] * 2


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "has no rows"),
        ('{"question": "a"}', "line 1: the columns are question"),
        ('{"prompt": "' + "a " * 90 + '", "completion": " b"}', "raise training.max_length"),
    ],
)
def test_what_is_wrong_from_the_start_is_told_at_the_start(tmp_path: Path, lines: str, says: str) -> None:
    (tmp_path / "x.jsonl").write_text(lines)
    with pytest.raises(DataError, match=says):
        prepare(DataConfig(train=str(tmp_path / "x.jsonl"), streaming=True), TOKENIZER, 16, 1)


def test_a_resumed_run_goes_on_where_its_data_were(tmp_path: Path) -> None:
    """More steps than there are rows, so that the data begin again, once before and once after the stop."""
    data = f"data.train={write(tmp_path / 'a.jsonl', 22)}"
    sets = (data, "training.save_strategy=steps", "training.save_steps=8", "training.max_steps=16")
    shown = tune(tmp_path / "whole", *sets)
    assert "a.jsonl · streamed (text)" in shown
    shown = tune(tmp_path / "parts", *sets, resume=str(tmp_path / "whole" / "checkpoint-8"))
    assert "resume   from " in shown
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_ends_the_run_by_its_name_or_is_listed_once(tmp_path: Path, workers: int) -> None:
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


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward"])
def test_a_stream_is_rehearsed_and_its_batch_found_with_rows_as_long_as_may_come(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.tuned import foresee, tune, weights

    monkeypatch.chdir(tmp_path)
    stream = [f"run.method={method}", "data.train=demo", "model.path=demo", "data.streaming=true"]
    stream += ["training.max_length=64", "training.eval_strategy=no", "training.max_steps=2"]
    batch = ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2"]
    shown = tune("found", *stream, *batch, "run.auto_batch=true", "run.rehearse=always")
    assert "batch    4 rows at once, 1 time before each update" in shown
    assert "rehearse a batch of the longest rows that may come" in shown
    assert "the run will take at most" in shown
    assert re.search(r"memory   peak .* [MG]B, estimated .* [MG]B", shown)
    tune("plain", *stream, "training.per_device_train_batch_size=4")
    assert weights("found") == weights("plain")
    assert "for rows of 64 tokens, the longest that may come" in foresee(*stream)
