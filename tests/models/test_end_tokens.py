"""A model stops where its answers were trained to end, in any library that loads it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from fmstune import train
from fmstune.config.schema.tables import ModelConfig
from fmstune.data.rendering.answer import Writer
from fmstune.models.end_tokens import learnt_ends, stop_at
from fmstune.models.load import load_tokenizer
from tests.support.chat_templates import TEMPLATES, end_of, tokenizer_with


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_end_tokens_are_those_of_the_family(template: str) -> None:
    using = tokenizer_with(template)
    assert learnt_ends("messages", using)[0] == end_of(template)
    assert learnt_ends("prompt/completion", using) == ()


@pytest.mark.parametrize(("own", "stops"), [(7, [7, 2]), ([7, 2], [7, 2]), (None, 2), (2, 2)])
def test_the_model_stops_at_them_in_addition_to_its_own_end_token(own: Any, stops: Any) -> None:
    using = load_tokenizer(ModelConfig(path="demo"))
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=own))
    stop_at(model, using, ("<|im_end|>",))
    assert using.convert_tokens_to_ids("<|im_end|>") == 2
    assert model.generation_config.eos_token_id == stops


def test_an_end_marker_that_is_not_one_token_is_a_stop_string() -> None:
    using = tokenizer_with("llama3_1", marks=False)
    assert (Writer(using).ends(), Writer(using).textual_ends()) == ((), ("<|eot_id|>",))


def test_a_run_saves_them(tmp_path: Path) -> None:
    run = train(
        settings={
            "model.path": "demo",
            "model.chat_template": "chatml",
            "data.train": "demo",
            "lora.enabled": True,
            "training.max_steps": 1,
            "training.output_dir": str(tmp_path / "run"),
        },
        quiet=True,
    )
    saved = json.loads((run.directory / "generation_config.json").read_text())
    assert saved["eos_token_id"] in (2, [2])
    assert "answers end with | `<|im_end|>`" in (run.directory / "README.md").read_text()
