"""Errors in a model's directory or in the first rows are reported before torch is imported, with the same
message as during preparation, and nothing is created."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.config.methods.known import METHODS
from fmstune.data.prepare import prepare
from fmstune.errors import DataError, ModelError
from fmstune.run.look_ahead import look_ahead

CASES = sorted(path for path in (Path(__file__).parents[1] / "data" / "cases").glob("*/*") if path.is_file())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.model_dir())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_what_the_early_check_refuses_the_preparation_refuses_with_the_same_message(
    case: Path, method: str, tokenizer: Any
) -> None:
    flags = [("model.path", "demo", "--model"), ("data.train", str(case), "--data")]
    config = load(None, flags, [f"run.method={method}"])
    early = refusal(lambda: look_ahead(config))
    if early is not None:
        assert refusal(lambda: prepare(config.data, tokenizer, None, 0, method=method)) == early


def refusal(step: Callable[[], object]) -> str | None:
    """The message with which the step refuses the data, if it does."""
    try:
        step()
    except DataError as error:
        return str(error)
    return None


def test_a_users_row_handler_does_not_run_in_the_early_check() -> None:
    ran = list[Any]()
    flags = [("model.path", "demo", "--model"), ("data.train", str(demo.data_file("train")), "--data")]
    config = load(None, flags, [])
    handled = dataclasses.replace(config, data=dataclasses.replace(config.data, handler=ran.append))
    look_ahead(handled)
    assert ran == []


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_that_was_killed_while_it_saved_is_not_a_model(
    lora: bool, tokenizer: Any, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo.model_dir()))
    saved: Any = get_peft_model(model, LoraConfig()) if lora else model
    for place in (tmp_path, tmp_path / "checkpoint-20"):
        saved.save_pretrained(place)
    tokenizer.save_pretrained(tmp_path / "checkpoint-20")
    (tmp_path / "checkpoint-20/trainer_state.json").write_text('{"global_step": 20}')
    config = load(None, [("model.path", str(tmp_path), "--model"), ("data.train", "demo", "--data")], [])
    with pytest.raises(ModelError, match=r"is not complete: .*give its newest checkpoint, '.*checkpoint-20'"):
        look_ahead(config)
    tokenizer.save_pretrained(tmp_path)
    look_ahead(config)
