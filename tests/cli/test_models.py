"""`fmstune merge` and `fmstune generate` as commands: they fail fast, and print nothing superfluous."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from fmstune import demo
from fmstune.errors import ConfigError, RunError
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from tests.support.tuned import tune
from tests.support.user_errors import error_line, fmstune


@pytest.mark.parametrize("command", ["merge", "generate"])
def test_help_imports_nothing_heavy(command: str, here: Path) -> None:
    done = fmstune(here, command, "--help")
    assert done.returncode == 0
    assert "IMPORTED" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("merge nothing out", "nothing: there is no such directory"),
        ("merge ./nothing out", "./nothing: there is no such directory"),
        ("merge whole out", "whole is a whole model, not an adapter: there is nothing to merge."),
        ("merge prompt out", "learnt words before each text (prompt tuning), which are no weights to merge"),
        ("merge broken out", "broken/adapter_config.json cannot be read"),
        ("merge notes.txt out", "notes.txt is a file; give the directory"),
        ("merge empty out", "empty holds no model, no adapter and no checkpoint"),
        ("merge whole out --dtype float64", "'float64' is not one of"),
        ("merge whole", "Missing argument 'OUT'"),
        ("generate ./nothing --prompt a", "./nothing: there is no such directory"),
        ("generate empty --prompt a", "empty holds no model, no adapter and no checkpoint"),
        ("generate notes.gguf --prompt a", "this is not a GGUF file, despite its name"),
        ("generate demo --prompt -", "standard input is empty"),
        ("train --model prompt --data demo --lora", "exclude each other"),
        (
            "train --model adapter --data demo --set lora.alpha=7",
            "lora.alpha = 7, but the adapter in adapter has",
        ),
        (
            "train --model other --data demo",
            "other' is an adapter of the type IA3; only LoRA and prompt tuning",
        ),
        ("train --set model.quantization=4bit", "add --lora"),
        ("train --set model.quantization=3bit", "'3bit' is not one of 4bit, 8bit"),
        ("train --model whole --data demo --output-dir whole", "holds the model to be trained"),
    ],
)
def test_errors_are_reported_at_once(arguments: str, says: str, here: Path) -> None:
    (here / "notes.txt").write_text("notes")
    (here / "notes.gguf").write_text("notes")
    settings = {
        "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
        "adapter": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "demo:1"},
        "other": {"peft_type": "IA3"},
    }
    for name in ("empty", "whole", "broken", *settings):
        (here / name).mkdir()
    for name, written in settings.items():
        (here / name / "adapter_config.json").write_text(json.dumps(written))
    (here / "broken" / "adapter_config.json").write_text("{")
    (here / "whole" / "config.json").write_text((demo.model_dir() / "config.json").read_text())
    assert says in error_line(here, *arguments.split())


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("nowhere", "nowhere is a link that leads nowhere"),
        ("loop", "loop is a link that leads nowhere"),
        ("loop/out", "loop/out cannot be written: loop is a link that leads nowhere."),
        ("nowhere/out", "nowhere/out cannot be written: nowhere is a link that leads nowhere."),
        ("notes.txt", "notes.txt is a file"),
        ("linked-notes", "linked-notes is a file"),
        ("notes.txt/out", "notes.txt/out cannot be written: notes.txt is a file."),
        ("linked-full", "linked-full is not empty"),
        ("/proc/out", "/proc/out cannot be written: No such file or directory."),  # not even by root
    ],
)
def test_an_unwritable_output_is_reported_before_weights_are_read(
    out: str, says: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    (here / "notes.txt").write_text("notes")
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("notes")
    links = {"nowhere": "gone", "loop": "loop", "linked-notes": "notes.txt", "linked-full": "full"}
    for link, target in links.items():
        (here / link).symlink_to(target)
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "demo:1"}
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    before = sorted(here.rglob("*"))
    with pytest.raises((ConfigError, RunError), match=re.escape(says)):
        merge(locate("adapter"), Path(out), dtype="auto", base=None, trust_remote_code=False)
    assert sorted(here.rglob("*")) == before


def test_a_merge_into_a_symlink_or_a_new_directory_is_complete_or_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(str(here / "run"), "lora.enabled=true", "training.max_steps=1", "training.save_strategy=no")
    (here / "target").mkdir()
    (here / "link").symlink_to("target")
    monkeypatch.chdir(here)
    before, inode = sorted(here.rglob("*")), (here / "target").stat().st_ino
    with monkeypatch.context() as broken:

        def fails(self: Any, folder: Path) -> None:
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

        broken.setattr(transformers.PreTrainedModel, "save_pretrained", fails)
        for out in ("link", "new/deep"):
            with pytest.raises(RunError, match=f"{out} cannot be written: No space left on device."):
                merge(locate("run"), Path(out), dtype="auto", base=None, trust_remote_code=False)
            assert sorted(here.rglob("*")) == before
    for out in ("link", "new/deep"):
        merge(locate("run"), Path(out), dtype="auto", base=None, trust_remote_code=False)
    written = [sorted(path.name for path in (here / name).iterdir()) for name in ("target", "new/deep")]
    assert written[0] == written[1]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(written[0])
    assert (here / "link").is_symlink()
    assert (here / "target").stat().st_ino == inode


def test_a_merged_adapter_of_the_demo_generates_answers(here: Path) -> None:
    tune(str(here / "run"), "lora.enabled=true")
    merged = fmstune(here, "merge", "run", "merged", light=False)
    assert merged.returncode == 0, merged.stderr
    lines = [line for line in merged.stderr.splitlines() if not line.startswith("IMPORTED")]
    assert lines[0].startswith("merged   LoRA r=16 on down_proj, ")
    assert lines[0].endswith(" with demo:42")
    assert lines[1:] == ["saved    merged · 1.4 MB, float32"]
    answers = [
        fmstune(here, "generate", name, "--prompt", "What is it?", "--max-new-tokens", "5", light=False)
        for name in ("run", "merged")
    ]
    assert answers[0].stdout == answers[1].stdout != ""
    assert not [line for line in answers[0].stderr.splitlines() if not line.startswith("IMPORTED")]
