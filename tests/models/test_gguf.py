"""A GGUF file is a model like any other: trained in float32, and saved as a plain one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.config.paths.models import split_gguf
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError, DataError, ModelError
from fmstune.models.load import load_model, load_tokenizer
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from tests.support.models import logits
from tests.support.short_runs import train
from tests.support.tiny_gguf import write_demo


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("path", "name"), [("a/demo.gguf", None), ("a", "demo.gguf")])
def test_it_has_the_weights_the_tokenizer_and_the_template_of_the_original_model(
    path: str, name: str | None
) -> None:
    Path("a").mkdir()
    write_demo(Path("a/demo.gguf"), seed=6)
    config = ModelConfig(path=path, gguf_file=name)
    loaded = load_model(config, lora=False, seed=0)
    assert torch.allclose(logits(loaded.model), logits(demo.build_model(6)), atol=1e-5)
    assert loaded.identity["path"] == "a/demo.gguf"
    tokenizer, original = load_tokenizer(config), AutoTokenizer.from_pretrained(demo.model_dir())
    chat = [{"role": "user", "content": "How much is it? ünö"}]
    ids = [each.apply_chat_template(chat, return_dict=True)["input_ids"] for each in (tokenizer, original)]
    assert ids[0] == ids[1]


def test_after_training_it_is_a_plain_model_in_float32() -> None:
    write_demo(Path("demo.gguf"), seed=6, quantised=True)
    train(Path("out"), model="demo.gguf")
    settings = json.loads(Path("out/config.json").read_text())
    assert "quantization_config" not in settings
    assert settings["dtype"] == "float32"
    model, report = AutoModelForCausalLM.from_pretrained("out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (logits(model) - logits(demo.build_model(6))).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained("out").chat_template
    repeated = load(Path("out/config.toml"))
    assert repeated.model.path == "demo.gguf"


def test_an_adapter_finds_it_again_and_is_merged_into_it() -> None:
    Path("a").mkdir()
    write_demo(Path("a/demo.gguf"), seed=6, quantised=True)
    train(Path("run"), "model.gguf_file=demo.gguf", "lora.enabled=true", model="a")
    assert (
        json.loads(Path("run/adapter_config.json").read_text())["base_model_name_or_path"] == "./a/demo.gguf"
    )
    adapted = load_model(ModelConfig(path="run"), lora=True, seed=0, trainable=False).model
    expected = logits(adapted)
    merge(locate("run"), Path("merged"), dtype="auto", base=None, trust_remote_code=False)
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    assert "quantization_config" not in json.loads(Path("merged/config.json").read_text())
    train(Path("second"), model="run")


def test_one_without_a_template_is_refused_for_chat_data() -> None:
    write_demo(Path("demo.gguf"), seed=6, template=False)
    with pytest.raises(DataError, match="the model has no chat template: give one"):
        train(Path("out"), model="demo.gguf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model.path": "demo.ggfu.gguf"},
            r"demo.ggfu.gguf'?: there is no such file. Did you mean demo.gguf\?",
        ),
        ({"model.path": "./no/demo.gguf"}, "there is no such file. Its directory no does not exist, either"),
        ({"model.path": "false.gguf"}, "this is not a GGUF file, despite its name"),
        (
            {"model.path": ".", "model.gguf_file": "x.gguf"},
            r"model.gguf_file = 'x.gguf': there is no such file",
        ),
        ({"model.path": "demo.gguf", "model.gguf_file": "x.gguf"}, "is already a GGUF file; leave it out"),
        ({"model.path": "demo.gguf", "model.quantization": "4bit"}, "only a LoRA adapter can be trained"),
    ],
)
def test_an_invalid_file_is_reported_with_the_configuration(settings: dict[str, Any], message: str) -> None:
    write_demo(Path("demo.gguf"), seed=6)
    Path("false.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=message):
        load(None, [("data.train", "demo", "--data"), *((k, v, "--set") for k, v in settings.items())])


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write_demo(Path("demo.gguf"), seed=6)
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r'pip install "fmstune\[gguf\]"'):
        load(None, [("model.path", "demo.gguf", "--model"), ("data.train", "demo", "--data")])


def test_a_truncated_file_is_reported() -> None:
    data = write_demo(Path("demo.gguf"), seed=6).read_bytes()
    Path("demo.gguf").write_bytes(data[:2000])
    with pytest.raises(ModelError, match=r"the tokenizer in 'demo.gguf' cannot be read: "):
        train(Path("out"), model="demo.gguf")


def test_a_directory_of_gguf_files_lists_them() -> None:
    write_demo(Path("demo.gguf"), seed=6)
    with pytest.raises(ModelError, match=r"give one of its GGUF files, such as 'demo.gguf'"):
        train(Path("out"), model=".")
    with pytest.raises(
        ModelError, match=r"holds no model but GGUF files; give one of them, such as demo.gguf"
    ):
        locate(".")
    assert locate("demo.gguf").path == "demo.gguf"


@pytest.mark.parametrize(
    ("path", "place", "name"),
    [
        ("owner/name/q4.gguf", "owner/name", "q4.gguf"),
        ("owner/name/sub/q4.gguf", "owner/name", "sub/q4.gguf"),
        ("./a/b/q4.gguf", "a/b", "q4.gguf"),
        ("/a/b/q4.gguf", "/a/b", "q4.gguf"),
        ("q4.gguf", ".", "q4.gguf"),
        ("name", "name", None),
    ],
)
def test_a_file_of_a_hub_repository_is_named_after_it(path: str, place: str, name: str | None) -> None:
    assert split_gguf(path, None) == (place, name)
