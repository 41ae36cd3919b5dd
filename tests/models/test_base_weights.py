"""An adapter finds the model that it was trained on, and says so when that has other weights now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fmstune import demo
from fmstune.cli.main import main
from fmstune.models.base_weights import fingerprint, recorded
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from tests.support.models import logits
from tests.support.short_runs import train

pytestmark = pytest.mark.usefixtures("small_demo")

LORA = ("lora.enabled=true", "training.max_steps=2")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(folder: Path, seed: int, **how: str) -> Path:
    shutil.copytree(demo.model_dir(), folder, dirs_exist_ok=True)
    demo.build_model(seed).save_pretrained(folder, **how)
    return folder


def said(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(list(command))
    return capsys.readouterr().err


def test_a_fingerprint_is_that_of_the_weights_in_however_many_files() -> None:
    one, parts = save(Path("one"), 3), save(Path("parts"), 3, max_shard_size="50KB")
    assert len(list(parts.glob("model-*.safetensors"))) > 1
    known = fingerprint(one)
    assert known == fingerprint(parts) is not None
    tensors = load_file(one / "model.safetensors")
    for name, tensor in tensors.items():
        save_file(tensors | {name: tensor + 1e-3}, one / "model.safetensors")
        assert fingerprint(one) != known, name
    torch.save(tensors, one / "pytorch_model.bin")
    (one / "model.safetensors").unlink()
    in_a_pickle = fingerprint(one)
    assert in_a_pickle is not None
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, one / "pytorch_model.bin")
    assert fingerprint(one) not in (in_a_pickle, None)


@pytest.mark.parametrize("content", [b"", b"\xff" * 99, b"\x02\0\0\0\0\0\0\0[]"])
def test_what_cannot_be_read_has_none(content: bytes) -> None:
    folder = save(Path("model"), 3)
    (folder / "model.safetensors").write_bytes(content)
    assert fingerprint(folder) is None


def test_in_another_directory_with_a_model_of_its_name_an_adapter_finds_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for project, seed in (("mine", 3), ("other", 9)):
        save(tmp_path / project / "base", seed)
    monkeypatch.chdir(tmp_path / "mine")
    train(Path("run"), *LORA, model="base")
    assert recorded(Path("run")) == recorded(Path("run/checkpoint-2")) == fingerprint(Path("base"))
    learnt = logits(PeftModel.from_pretrained(demo.build_model(3), "run"))
    monkeypatch.chdir(tmp_path / "other")
    run = tmp_path / "mine" / "run"
    done = merge(locate(str(run)), Path("merged"), dtype="auto", base=None, trust_remote_code=False)
    assert (done.base, done.notes) == (str(tmp_path / "mine" / "base"), ())
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained("merged")), learnt, atol=1e-4)
    train(Path("further"), "training.learning_rate=1e-12", model=str(run))
    named = json.loads(Path("further/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "mine" / "base")


def test_a_base_model_that_has_changed_is_reported_wherever_it_is_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(Path("base"), 3)
    train(Path("run"), *LORA, "training.save_strategy=steps", "training.save_steps=1", model="base")
    expected = "the weights of ./base are not those that the adapter in run was trained on"
    assert "not those" not in said(capsys, "merge", "run", "same")
    save(Path("base"), 9)
    assert expected in said(capsys, "generate", "run", "--prompt", "Hello", "--max-new-tokens", "1")
    assert expected in said(capsys, "merge", "run", "changed")
    assert expected.replace("./", "") in train(Path("further"), model="run").replace("./", "")
    shown = train(Path("resumed"), *LORA, model="base", resume="run/checkpoint-1")
    assert "the adapter in run/checkpoint-1 was trained on" in shown
