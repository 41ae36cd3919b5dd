"""A model is loaded, or refused with one sentence that says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fmstune import demo
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ModelError
from fmstune.models.load import load_model, load_tokenizer
from tests.support.unprivileged import unprivileged


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, saved with its weights."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    shutil.copytree(demo.model_dir(), folder)
    demo.build_model(3).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of a valid model, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load(config: ModelConfig) -> None:
    load_tokenizer(config)
    load_model(config, lora=False, seed=0)


def refused(path: str | Path, chat_template: str | None = None) -> str:
    config = ModelConfig(path=str(path), chat_template=chat_template)
    with pytest.raises(ModelError) as caught:
        load(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_saved_model_is_loaded_in_float32_with_its_tokenizer_and_template(saved: Path) -> None:
    loaded = load_model(ModelConfig(path=str(saved)), lora=False, seed=0)
    assert loaded.identity["type"] == "llama"
    assert loaded.identity["dtype"] == "float32"
    assert loaded.identity["parameters"] == loaded.model.num_parameters()
    assert "hub_commit" not in loaded.identity


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_kept_in_the_requested_dtype(saved: Path, dtype: str) -> None:
    assert load_model(ModelConfig(path=str(saved), dtype=dtype), lora=True, seed=0).identity["dtype"] == dtype


def test_a_model_is_identified_by_its_content_wherever_it_is(saved: Path, copy: Path) -> None:
    hashes = [
        load_model(ModelConfig(path=str(path)), lora=False, seed=0).identity["config_sha256"]
        for path in (saved, copy)
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("path", ["./nothing", "/no/such/place", "~/model", "a/b/c"])
def test_a_missing_directory_is_reported_without_asking_the_hub(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("asked"))
    assert "there is no such directory" in refused(path)


@pytest.mark.parametrize("path", ["owner/nothing", "nothing"])
def test_a_name_that_cannot_be_downloaded_is_reported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "neither a directory here nor could it be fetched from the hub" in refused(path)


def test_a_file_is_no_model(saved: Path) -> None:
    assert "is a file; give the directory" in refused(saved / "config.json")


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    assert "holds no model: there is no config.json in it" in refused(tmp_path)


def test_an_adapter_without_its_type_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is not the configuration of an adapter: it has no peft_type" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "does not say what model it was made for" in refused(tmp_path)


def damage(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def half(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was run",)


def pickled_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Code()}, folder / "pytorch_model.bin")


def change_config(**settings: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def remove(pattern: str) -> Callable[[Path], object]:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage("model.safetensors", b""), "are damaged or incompletely copied: Error while"),
        (damage("model.safetensors", b"\x08" + b"\0" * 99), "are damaged or incompletely copied"),
        (half("model.safetensors"), "are damaged or incompletely copied"),
        (pickled_code, "are a pickle that contains more than tensors, or is damaged"),
        (remove("model.safetensors"), "cannot be loaded: Error no file named model.safetensors"),
        (damage("config.json", b"{"), "is not a valid JSON file"),
        (damage("config.json", b'{"model_type": "unheard-of"}'), "model type `unheard-of`"),
        (damage("tokenizer.json", b"{"), "the tokenizer in"),
        (damage("tokenizer.json", b"{}"), "one of its files is damaged or of an unknown version (KeyError"),
        (remove("tokenizer*"), "is a model without a tokenizer"),
        (change_config(hidden_size=48), "do not match its config.json"),
        (change_config(num_hidden_layers=5), "are not complete: they lack 18 tensors"),
    ],
)
def test_a_damaged_model_is_refused(copy: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(copy)
    assert message in refused(copy)


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_model_without_a_language_models_head_is_refused_as_what_it_is(copy: Path, name: str) -> None:
    config = transformers.LlamaConfig.from_pretrained(copy, tie_word_embeddings=False)
    getattr(transformers, name)(config).save_pretrained(copy)
    assert f"is a {name}: it lacks 1 tensor of a LlamaForCausalLM, lm_head.weight for one" in refused(copy)


def test_a_file_that_may_not_be_read_is_named(copy: Path) -> None:
    """The libraries say that it does not exist."""
    (copy / "model.safetensors").chmod(0)
    code = (
        "from fmstune.config.schema.tables import ModelConfig\n"
        "from fmstune.models.load_errors import why_not_loaded\n"
        f"print(why_not_loaded(ModelConfig(path={str(copy)!r}), 'model', OSError('No such file')))"
    )
    told = f"the model in '{copy}' cannot be loaded: model.safetensors cannot be read: Permission denied."
    remedy = f"`chmod u+rw {copy}/model.safetensors` gives you access."
    assert unprivileged(code, copy).stdout == f"{told} {remedy}\n"


def test_a_custom_chat_template_replaces_the_models(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% generation %}ü{% endgeneration %}")
    tokenizer = load_tokenizer(ModelConfig(path="demo", chat_template=str(tmp_path / "own.jinja")))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "ü"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"a\n{% for %}", "is not a Jinja template: line 2"),
        (b"{{ 'open", "is not a Jinja template: line 1"),
    ],
)
def test_an_invalid_chat_template_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.jinja"
    if content is not None:
        path.write_bytes(content)
    refusal = refused("demo", chat_template=str(path))
    assert refusal.startswith(f"model.chat_template = '{path}'")
    assert message in refusal


def test_a_models_own_invalid_chat_template_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("a\n{% for %}")
    assert f"the chat template of {copy} is not a Jinja template: line 2" in refused(copy)


def weights(seed: int) -> torch.Tensor:
    loaded = load_model(ModelConfig(path="demo"), lora=False, seed=seed)
    return torch.cat([parameter.flatten() for parameter in loaded.model.parameters()])


def test_the_demo_model_depends_only_on_its_seed() -> None:
    torch.manual_seed(1)
    first = weights(5)
    torch.manual_seed(2)
    assert torch.equal(first, weights(5))
    assert not torch.equal(first, weights(6))


def test_the_demo_model_does_not_change_the_random_state() -> None:
    state = torch.random.get_rng_state()
    weights(5)
    assert torch.equal(state, torch.random.get_rng_state())
