"""A tokenizer that splits texts otherwise than its file says is reported, wherever tokens are made."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from fmstune import demo
from fmstune.cli.main import main
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ModelError
from fmstune.models.load import load_for_use, load_tokenizer
from fmstune.models.tokenizer_file import unlike_its_file
from tests.support.short_runs import train

pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose tokenizer.json splits numbers into digits, of the class GPT2Tokenizer: transformers
    builds the class without that."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo.model_dir(), "model")
    demo.build_model(3).save_pretrained("model")
    file = Path("model/tokenizer.json")
    settings = json.loads(file.read_text())
    digits = {"type": "Digits", "individual_digits": True}
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, settings["pre_tokenizer"]]}
    file.write_text(json.dumps(settings))
    set_class("GPT2Tokenizer")
    return Path("model")


def set_class(name: str) -> None:
    file = Path("model/tokenizer_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": name}))


def test_it_is_reported_with_an_example_and_a_remedy_that_helps(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "(GPT2Tokenizer) has rules of its own: 'It is 12345 of 678' is "
    assert said in train(Path("run"), model="model")
    assert said in load_for_use(ModelConfig(path="model"))[0].notes[0]
    Path("rows.jsonl").write_text('{"text": "It is 12345."}\n')
    with pytest.raises(SystemExit):
        main(["data", "rows.jsonl", "--model", "model"])
    shown = capsys.readouterr().err
    assert said in shown
    assert 'set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json' in shown
    set_class("PreTrainedTokenizerFast")
    assert "rules of its own" not in train(Path("again"), model="model")


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"])
def test_one_that_splits_like_its_file_is_not(model: Path, name: str) -> None:
    set_class(name)
    assert unlike_its_file(load_tokenizer(ModelConfig(path="model")), "model") is None


def test_without_a_file_there_is_nothing_to_compare(model: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path="model"))
    assert unlike_its_file(tokenizer, "demo") is None


def test_a_sentencepiece_model_names_the_package_that_reads_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks for tiktoken, which it tries after sentencepiece."""
    for file in model.glob("tokenizer*"):
        file.unlink()
    (model / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelError, match=r"has no tokenizer.json, .*: pip install sentencepiece protobuf"):
        load_tokenizer(ModelConfig(path="model"))
