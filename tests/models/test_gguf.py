"""A GGUF file is a model like any other: trained in float32, and saved as a plain one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.config.paths.models import split_gguf
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError, DataError, ModelError
from fmstune.models.gguf import GgufFile, complete
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


def _linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def _yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)


def _original(seed: int, positions: dict[str, Any]) -> Any:
    """The demo model with scaled positions."""
    model = demo.build_model(seed)
    model.config.rope_parameters = model.config.rope_parameters | positions
    scaled = type(model)(model.config)
    scaled.load_state_dict(model.state_dict())
    return scaled


@pytest.mark.parametrize(
    ("further", "positions"),
    [
        (_linear, {"rope_type": "linear", "factor": 4.0}),
        (_yarn, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    ],
)
def test_its_positions_are_scaled_as_it_says_also_in_the_tuned_model(
    further: Any, positions: dict[str, Any]
) -> None:
    write_demo(Path("demo.gguf"), seed=6, further=further)
    loaded = load_model(ModelConfig(path="demo.gguf"), lora=False, seed=0)
    assert torch.allclose(logits(loaded.model), logits(_original(6, positions)), atol=1e-5)
    assert not torch.allclose(logits(loaded.model), logits(demo.build_model(6)), atol=0.1)
    assert loaded.notes == ()
    train(Path("out"), model="demo.gguf")
    assert positions.items() <= json.loads(Path("out/config.json").read_text())["rope_parameters"].items()


def test_a_llama_3_model_has_the_scaling_from_which_its_factors_follow() -> None:
    positions = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 5e5,
    }  # fmt: skip
    original = _original(6, positions)
    rotary = next(module for module in original.modules() if hasattr(module, "inv_freq"))
    size = 2 * len(rotary.inv_freq)
    unscaled = 1 / 5e5 ** (torch.arange(0, size, 2) / size)
    factors = {"rope_freqs.weight": (unscaled / rotary.inv_freq).numpy()}
    write_demo(Path("demo.gguf"), 6, further=lambda writer: writer.add_rope_freq_base(5e5), tensors=factors)
    loaded = load_model(ModelConfig(path="demo.gguf"), lora=False, seed=0)
    assert torch.allclose(logits(loaded.model), logits(original), atol=1e-5)
    assert loaded.model.config.rope_parameters == positions
    assert loaded.notes == ()


@pytest.mark.parametrize(
    ("kind", "metadata", "expected"),
    [
        ("starcoder2", {"rope.freq_base": 1e6}, {"rope_parameters": {"rope_theta": 1e6}}),
        ("starcoder2", {"attention.sliding_window": 64}, {"sliding_window": 64}),
        ("phi3", {"attention.sliding_window": 0}, {"sliding_window": None}),
        ("phi3", {"attention.sliding_window": 2**20}, {"sliding_window": None}),
        ("phi3", {"rope.dimension_count": 72}, {"rope_parameters": {"partial_rotary_factor": 0.75}}),
        ("gemma2", {"final_logit_softcapping": 9.0}, {"final_logit_softcapping": 9.0}),
        ("nemotron", {"attention.layer_norm_epsilon": 0.5}, {"norm_eps": 0.5}),
        ("gemma4_text", {"attention.key_length": 512, "rope.dimension_count": 512}, {"head_dim": 256}),
        (
            "phi3",
            {"rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.2},
            {
                "original_max_position_embeddings": 4096,
                "rope_parameters": {
                    "rope_type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0],
                    "original_max_position_embeddings": 4096, "attention_factor": 1.2,
                },
            },
        ),
    ],
)  # fmt: skip
def test_settings_that_transformers_leaves_out_are_those_of_the_model(
    kind: str, metadata: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = AutoConfig.for_model(kind)
    factors = {"rope_factors_short.weight": [1.0, 1.1], "rope_factors_long.weight": [2.0, 3.0]}
    long = "rope.scaling.attn_factor" in metadata
    file = GgufFile(kind.removesuffix("_text"), metadata, (), factors if long else {})
    assert complete(settings, file) == ()
    found = settings.to_dict()
    for key, value in expected.items():
        assert value.items() <= found[key].items() if isinstance(value, dict) else found[key] == value


def test_an_architecture_with_its_own_positions_keeps_them_and_names_the_rest() -> None:
    settings = AutoConfig.for_model("gemma4_text")
    before = settings.to_dict()["rope_parameters"]
    said = {"rope.freq_base": 5.0, "rope.dimension_count": 512, "attention.key_length_swa": 256, "scale": 2}
    assert complete(settings, GgufFile("gemma4", said, (), {"rope_freqs.weight": [1.0]})) == ("scale = 2",)
    assert settings.to_dict()["rope_parameters"] == before


def test_what_it_says_and_the_model_does_not_compute_is_named() -> None:
    def scaled(writer: gguf.GGUFWriter) -> None:
        writer.add_logit_scale(0.25)
        writer.add_tokenizer_pre("deepseek-coder")

    bias = {"blk.0.ffn_up.bias": np.zeros(4, np.float32), "rope_freqs.weight": np.full(4, 7, np.float32)}
    write_demo(Path("demo.gguf"), seed=6, further=scaled, tensors=bias)
    settings, tensors = load_model(ModelConfig(path="demo.gguf"), lora=False, seed=0).notes
    assert (
        "says logit_scale = 0.25, tokenizer.ggml.pre = deepseek-coder, rope_freqs.weight, which" in settings
    )
    assert "1 tensor in the weights of 'demo.gguf'" in tensors
    assert "blk.0.ffn_up.bias for one; they are neither used nor saved" in tensors


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
