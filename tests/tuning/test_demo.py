"""The demo is small, made the same each time, and tests the model on what it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmstune import demo
from fmstune.config.schema import ModelConfig
from fmstune.demo.make_demo import make
from fmstune.tuning.model import load_tokenizer

FOLDER = demo.model_dir().parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("data", "model")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }


def test_the_files_are_those_that_make_demo_makes(made: Path) -> None:
    assert files(made) == files(FOLDER)


def test_the_demo_is_small() -> None:
    assert sum(map(len, files(FOLDER).values())) < 500_000


def test_no_row_is_both_trained_and_evaluated_on() -> None:
    train, evaluation = (demo.data_file(split).read_text().splitlines() for split in ("train", "eval"))
    assert (len(train), len(evaluation)) == (400, 60)
    assert len({*train, *evaluation}) == 460


def test_every_conversation_is_user_and_assistant_in_turn() -> None:
    for line in demo.data_file("train").read_text().splitlines():
        roles = [message["role"] for message in json.loads(line)["messages"]]
        spoken = roles[roles[0] == "system" :]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)


def test_the_tokenizer_gives_every_text_back() -> None:
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    text = "2 + 2?  \n\tIt's 4, naïve 😀\u2028!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_model_fits_its_tokenizer() -> None:
    model, tokenizer = demo.build_model(), load_tokenizer(ModelConfig(path="demo"))
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.num_parameters() < 1_000_000
