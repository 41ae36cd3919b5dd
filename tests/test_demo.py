"""The demo is small, reproducible, and evaluates the model on rows that it was not trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fmstune import demo
from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import prepare
from fmstune.data.tokens.table import IGNORED
from fmstune.demo.make_demo import make
from fmstune.models.load import load_tokenizer

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


def test_the_files_are_those_that_make_demo_writes(made: Path) -> None:
    assert files(made) == files(FOLDER)


def test_the_demo_is_small() -> None:
    assert sum(map(len, files(FOLDER).values())) < 500_000


def test_no_row_is_both_trained_and_evaluated() -> None:
    train, evaluation = (demo.data_file(split).read_text().splitlines() for split in ("train", "eval"))
    assert (len(train), len(evaluation)) == (400, 60)
    assert len({*train, *evaluation}) == 460


def test_every_conversation_alternates_between_user_and_assistant() -> None:
    for line in demo.data_file("train").read_text().splitlines():
        roles = [message["role"] for message in json.loads(line)["messages"]]
        spoken = roles[roles[0] == "system" :]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)


def test_the_tokenizer_round_trips_every_text() -> None:
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    text = "2 + 2?  \n\tIt's 4, naïve 😀\u2028!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_model_fits_its_tokenizer() -> None:
    model, tokenizer = demo.build_model(), load_tokenizer(ModelConfig(path="demo"))
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.num_parameters() < 1_000_000
    settings = json.loads((demo.model_dir() / "generation_config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.eos_token_id
    assert settings["pad_token_id"] == tokenizer.pad_token_id


def test_locating_the_demo_imports_nothing_heavy() -> None:
    program = """if True:
        import sys
        from fmstune import demo
        assert demo.model_dir().is_dir() and demo.data_file("train").is_file()
        print([name for name in ("torch", "transformers", "datasets", "tokenizers") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=FOLDER.parents[1]
    )
    assert done.stdout.strip() == "[]"


def test_the_weights_depend_only_on_the_seed_and_drawing_them_keeps_torchs_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (demo.build_model(seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_demo_is_learned_within_seconds() -> None:
    """Sixty steps take 2 s on one core and reduce the loss from 6.4 to 1.0; thirty are tested here."""
    data = prepare(DataConfig(train="demo"), load_tokenizer(ModelConfig(path="demo")), 256, seed=0).train
    model = demo.build_model(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        rows = data[step * 8 : step * 8 + 8]
        longest = max(map(len, rows["input_ids"]))
        ids, labels = (
            torch.tensor([row + [fill] * (longest - len(row)) for row in rows[column]])
            for column, fill in (("input_ids", 0), ("labels", IGNORED))
        )
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 5
    assert sum(losses[-5:]) / 5 < 2


def test_the_demo_model_has_the_requested_attention() -> None:
    assert demo.build_model(attention="eager").config._attn_implementation == "eager"
