"""The special tokens that a tokenizer adds around texts are in a row once, also where its text has them, and
not between a prompt and its answer, whatever the method; `generate` starts from the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from fmstune.config.schema.data import DataConfig
from fmstune.config.schema.tables import ModelConfig
from fmstune.data.prepare import prepare
from fmstune.data.tokens.special import prompt_as_ids
from fmstune.models.load import load_tokenizer

START, END = "<|im_start|>", "<|endoftext|>"
PROMPT, ANSWER = "What does the lamp cost?", " Nine euros."


@pytest.fixture
def tokenizer() -> Any:
    """One like Llama 2's with `add_eos_token`."""
    made: Any = load_tokenizer(ModelConfig(path="demo"))
    made.add_special_tokens({"bos_token": START, "eos_token": END})
    tokens = [(token, made.convert_tokens_to_ids(token)) for token in (START, END)]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=tokens
    )
    assert made.decode(made("Nine")["input_ids"]) == f"{START}Nine{END}"
    return made


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward", "orpo"])
@pytest.mark.parametrize("start", ["", START])
@pytest.mark.parametrize("end", ["", END])
def test_a_row_has_each_once(method: str, start: str, end: str, tokenizer: Any, tmp_path: Path) -> None:
    prompt, answer = start + PROMPT, ANSWER + end
    row: dict[str, Any] = {"prompt": prompt, "chosen": answer, "rejected": f" No.{end}"}
    if method == "sft":
        row = {"prompt": prompt, "completion": answer}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    data = prepare(DataConfig(train=str(path), cache=False), tokenizer, None, 0, method=method).train
    asked, learnt = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (START + PROMPT, ANSWER + END)
    )
    found = next(each for each in data if method != "kto" or each["label"])
    if method == "sft":
        assert found == {"input_ids": asked + learnt, "labels": [-100] * len(asked) + learnt}
    elif method == "reward":
        assert found["chosen_ids"] == asked + learnt
    else:
        assert found["prompt_ids"] == asked
        assert found["completion_ids" if method == "kto" else "chosen_ids"] == learnt
    assert prompt_as_ids(tokenizer, prompt, special=True) == asked


def test_a_prompt_without_words_is_what_the_tokenizer_puts_before_texts(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(prompt_as_ids(tokenizer, "", special=True)) == [START]
