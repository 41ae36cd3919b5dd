"""Python values are accepted where they make sense, and otherwise refused with their location, before
anything is written."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import tomli
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

import fmstune
from fmstune.config.inspect.dump import to_toml
from fmstune.config.load.load import load
from fmstune.config.load.python_values import from_python
from fmstune.errors import ConfigError, RunError
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import TrackerError

DEMO: dict[str, Any] = {
    "model.path": "demo", "data.train": "demo", "data.eval": "demo", "training.max_steps": 1,
    "training.save_strategy": "no", "training.eval_strategy": "no", "data.max_rows": 16,
}  # fmt: skip


class Colour(enum.Enum):
    RED = "red"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_paths_numpy_numbers_and_enum_members_are_valid_settings(tmp_path: Path) -> None:
    result = fmstune.train(
        settings=DEMO
        | {
            "training": {
                "output_dir": tmp_path / "out",
                "max_steps": np.int64(1),
                "learning_rate": np.float32(0.5),
            },
            "params": {
                "where": tmp_path,
                "colour": Colour.RED,
                "sizes": np.arange(2),
                "flag": np.bool_(True),
            },
        },
        callbacks=TrainerCallback,
        quiet=True,
    )
    assert result.directory == tmp_path / "out"
    found = tomli.loads((tmp_path / "out" / "config.toml").read_text())
    assert found["params"] == {"where": str(tmp_path), "colour": "red", "sizes": [0, 1], "flag": True}
    assert found["training"]["max_steps"] == 1


ROWS = [{"prompt": "2+2?", "completion": "4"}]
TINY = {
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 8,
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"settings": {"params": {"tags": {"a"}}}}, "params.tags is of the type set: use a list"),
        ({"settings": {"params": {"deep": [{"x": object()}]}}}, "params.deep.x is of the type object"),
        ({"settings": {"params": {"raw": b"x"}}}, "params.raw is of the type bytes"),
        ({"settings": {"params": {5: 1}}}, "params has the key 5; keys are strings"),
        ({"settings": {"tracking.trackers": [fmstune.Tracker]}}, 'fmstune.register_tracker("NAME", CLASS)'),
        ({"settings": {"tracking.trackers": fmstune.Tracker()}}, "and use that name"),
        (
            {"settings": {"run.callbacks": [TrainerCallback]}},
            "run.callbacks is of the type type: pass it as an argument",
        ),
        ({"settings": "a=b"}, "settings = 'a=b' is not a mapping"),
        ({"settings": ["a"]}, "is not a mapping"),
        ({"data_handler": 5}, "data_handler = 5 is not a function"),
        ({"compute_metrics": 5}, "compute_metrics = 5 is not a function"),
        ({"callbacks": 5}, "5 is no transformers.TrainerCallback"),
        ({"callbacks": [int]}, "is no transformers.TrainerCallback"),
        ({"config": 5}, "config = 5 is not a path"),
        ({"config": {"model.path": "demo"}}, "is not a path; pass settings as settings={…}."),
        (
            {"settings": {"data.train": ROWS}},
            "is a list of rows: write them to a file, one JSON object per line",
        ),
        (
            {"settings": {"data": {"train": Dataset.from_list(ROWS)}}},
            "data.train is of the type Dataset: save it with .save_to_disk(FOLDER), and give the folder.",
        ),
        (
            {"settings": {"data.eval": [pandas.DataFrame(ROWS)]}},
            "DataFrame: save it with .to_parquet(FILE), and",
        ),
        (
            {"settings": {"model": LlamaForCausalLM(LlamaConfig(**TINY))}},
            "model is of the type LlamaForCausalLM: save it and its tokenizer with .save_pretrained(FOLDER)",
        ),
        ({"resume": 5}, "resume = 5 is not a path"),
    ],
)
def test_nonsensical_values_are_refused_before_anything_is_written(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        fmstune.train(**arguments)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_compute_metrics_that_returns_none_is_named_as_the_cause() -> None:
    def forgets(prediction: Any) -> None:
        """Computes, and returns nothing."""

    with pytest.raises(
        RunError, match=r"run.compute_metrics: forgets returned None; it has to return a mapping"
    ):
        fmstune.train(
            settings=DEMO
            | {"training.output_dir": "out", "training.eval_strategy": "steps", "training.eval_steps": 1},
            compute_metrics=forgets,  # type: ignore[arg-type]
            quiet=True,
        )


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.dates(),
    st.complex_numbers(),
    st.sets(st.integers(), max_size=2),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(np.int16, st.integers(-9, 9)),
    st.builds(Path, st.just("a/b")),
    st.builds(torch.tensor, st.lists(st.integers(0, 9), max_size=2)),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    tables = st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    return st.lists(inner, max_size=3) | st.tuples(inner) | tables


ANY = st.recursive(LEAVES, containers, max_leaves=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY)
def test_any_python_value_is_written_or_refused(value: Any) -> None:
    try:
        plain = from_python(value, "test", "params", "value")
        config = load(None, [("params.value", plain, "test")])
    except ConfigError:
        return
    tomli.loads(to_toml(config))


def test_options_of_a_tracker_are_checked_as_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match=r"trackers.file.path = 5 is"):
        fmstune.get_tracker("file", path=5)
    with pytest.raises(TrackerError, match="file has no option 'pth'"):
        fmstune.get_tracker("file", pth="x")
    assert fmstune.get_tracker("file", path=tmp_path / "m.jsonl").config.path == str(tmp_path / "m.jsonl")


@pytest.mark.parametrize("wrong", [5, "file", object(), Tracker("x"), int])
def test_what_is_no_tracker_is_not_registered(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is not a class with a method `track`"):
        fmstune.register_tracker("mine", wrong)
