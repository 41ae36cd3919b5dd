"""Every setting of fmstune's own tables has an effect: each field is applied, refused or reported as unused,
which is observed in a built trainer, in messages, or in a test of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fmstune.config.load.load import load
from fmstune.config.rules.unused import unused
from fmstune.config.schema.tables import TABLES, RunConfig
from fmstune.errors import ConfigError, DataError, ModelError
from fmstune.trackers.base import Tracker
from fmstune.training.build import build_trainer
from tests.support.tuned import dry_run_shown, tune

pytestmark = pytest.mark.usefixtures("small_demo")

CHATS, TEXTS = "data.train=chats.jsonl", "data.train=texts.txt"
SETTINGS: dict[str, tuple[str, ...]] = {
    "model.gguf_file": ("x.gguf",),
    "model.revision": ("abc",),
    "model.dtype": ("bfloat16",),
    "model.quantization": ("4bit",),
    "model.attn_implementation": ("eager",),
    "model.trainable": ("['norm']",),
    "model.add_tokens": ("['<tool>']",),
    "model.lr_multipliers": ("{norm = 2}",),
    "model.chat_template": ("llama3",),
    "model.chat_template_kwargs": ("{loud=true}", CHATS, "model.chat_template=loud.jinja"),
    "data.train": ("texts.txt", CHATS),
    "data.eval": ("texts.txt", CHATS),
    "data.eval_fraction": ("0.5", CHATS),
    "data.train_on": ("all", CHATS),
    "data.history": ("last", CHATS),
    "data.reasoning": ("keep", CHATS, "model.chat_template=chatml"),
    "data.strict_chat": ("true", CHATS),
    "data.max_rows": ("1", CHATS),
    "data.template": ("'Q {text}'", "data.train=columns.jsonl"),
    "data.columns": ("{text='other'}", "data.train=columns.jsonl"),
    "data.handler": ("mine:shout", TEXTS),
    "data.text_rows": ("file", TEXTS),
    "data.skip_bad_rows": ("true", "data.train=damaged.jsonl"),
    "data.streaming": ("true", TEXTS),
    "data.shuffle_buffer": ("2", TEXTS, "data.streaming=true"),
    "lora.enabled": ("true",),
    "lora.r": ("4", "lora.enabled=true"),
    "lora.alpha": ("7", "lora.enabled=true"),
    "lora.dropout": ("0.5", "lora.enabled=true"),
    "lora.target_modules": ("q_proj", "lora.enabled=true"),
    "lora.bias": ("all", "lora.enabled=true"),
    "lora.rslora": ("true", "lora.enabled=true"),
    "lora.dora": ("true", "lora.enabled=true"),
    "lora.modules_to_save": ("['lm_head']", "lora.enabled=true"),
    "prompt_tuning.enabled": ("true",),
    "prompt_tuning.tokens": ("5", "prompt_tuning.enabled=true"),
    "prompt_tuning.text": ("hello", "prompt_tuning.enabled=true"),
    "run.method": ("dpo", "data.train=demo"),
    "run.early_stopping_patience": ("3", "data.eval=demo"),
    "run.compute_metrics": ("mine:shout",),
    "run.callbacks": ("['mine:Calls']",),
}
"""A non-default value of each field, and the settings under which it has an effect."""
ELSEWHERE = {
    "lora.target_parameters": "models/test_adapter_parameters.py",
    "model.path": "run/test_run.py", "model.trust_remote_code": "models/test_remote_code.py",
    "data.cache": "data/test_cache.py", "run.on_nonfinite": "training/test_nonfinite.py",
    "run.rehearse": "training/test_rehearsal.py", "run.save_dtype": "models/test_saving.py",
    "run.auto_batch": "training/test_memory.py", "run.early_stopping_threshold": "training/test_best.py",
    "run.termination_log": "launch/test_launch.py", "samples.prompts": "training/test_samples.py",
    "samples.rows": "training/test_samples.py", "samples.max_new_tokens": "training/test_samples.py",
    "tracking.trackers": "run/test_run.py", "tracking.close_timeout": "delivery/test_shippers.py",
    "tracking.check_timeout": "faults/test_faults.py", "tracking.strict": "run/test_run.py",
    "resources.interval": "resources/test_scanner.py",
    "tracking.in_process_timeout": "training/test_own_settings.py",
    "tracking.artifacts": "run/test_artifacts.py", "run.name": "run/test_labels.py",
    "run.group": "run/test_labels.py", "run.tags": "run/test_labels.py", "run.notes": "run/test_labels.py",
}  # fmt: skip
"""Fields whose effect another test shows, since no built trainer does."""
NAMED = {
    "model.revision=abc": "",  # with a name on the Hub it selects the files
    "data.shuffle_buffer=2": "data.streaming=true",
    "data.text_rows=file": TEXTS,
    "lora.r=4": "lora.enabled=true",
    "prompt_tuning.tokens=5": "prompt_tuning.enabled=true",
    "run.early_stopping_threshold=0.5": "run.early_stopping_patience=2 data.eval=demo",
    "samples.max_new_tokens=5": "samples.rows=1 data.eval=demo",
    "tracking.close_timeout=5": "tracking.trackers=['file']",
    "data.history=last": CHATS,
    "data.max_rows=5": CHATS,
    "trackers.file.path=x.csv": "tracking.trackers=['file']",
}
"""Settings that have no effect alone, each with what it needs."""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    said = [("user", "Hi"), ("assistant", "Hello."), ("user", "Why?"), ("user", "Say."), ("assistant", "So.")]
    chat: list[dict[str, str]] = [{"role": role, "content": text} for role, text in said]
    chat[-1]["reasoning_content"] = "It has to be so."
    Path("chats.jsonl").write_text(f"{json.dumps({'messages': chat})}\n" * 3)
    Path("texts.txt").write_text("".join(f"the dog number {number} barks\n" for number in range(8)))
    Path("columns.jsonl").write_text('{"text": "a red dog", "other": "a blue cat"}\n' * 3)
    Path("damaged.jsonl").write_text('{"text": "a red dog"}\n{"text": \n')
    Path("loud.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ '!' if loud }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    calls = "from transformers import TrainerCallback as Calls\n"
    Path("mine.py").write_text(f"{calls}def shout(row): return {{'text': row['text'].upper()}}\n")


def configured(*sets: str) -> RunConfig:
    chosen = {key for key, _, _ in (each.partition("=") for each in sets)}
    usual = {"model.path": "demo", "data.train": "texts.txt", "training.max_steps": "2"}
    return load(None, sets=[*(f"{k}={v}" for k, v in usual.items() if k not in chosen), *sets])


def facts(*sets: str) -> Any:
    """What a trainer with these settings has, except sources of values; or the message if it is refused."""
    try:
        config = configured(*sets)
        built = build_trainer(config, Tracker(), Path("out"))
    except (ConfigError, DataError, ModelError) as error:
        return str(error)
    model, trainer = built.trainer.model, built.trainer
    rows = next(iter(trainer.train_dataset)) if config.data.streaming else trainer.train_dataset[0]
    return {
        "rows": rows,
        "data": built.data.as_params(),
        "said": [built.data.line(), *built.data.unused_lines(), *built.notes, *built.bad_rows.lines()],
        "args": vars(trainer.args) | {"logging_dir": None},
        "adapter": str(getattr(model, "peft_config", "")),
        "model": (model.config.to_dict(), model.config._attn_implementation, str(model.dtype)),
        "trained": built.trainable,
        "virtual": [weight for name, weight in model.state_dict().items() if "prompt_encoder" in name],
        "template": built.tokenizer.chat_template,
        "callbacks": [type(each).__name__ for each in trainer.callback_handler.callbacks],  # type: ignore[attr-defined]
        "metrics": trainer.compute_metrics,  # type: ignore[attr-defined]
    }


def differ(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(differ(one[name], other[name]) for name in one)
    if isinstance(one, torch.Tensor) or (isinstance(one, list) and one and isinstance(one[0], torch.Tensor)):
        return str(one) != str(other)
    return bool(one != other)


@pytest.mark.parametrize("table", TABLES)
def test_no_field_of_our_tables_is_accepted_and_ignored(table: str) -> None:
    for field in dataclasses.fields(TABLES[table]):
        key = f"{table}.{field.name}"
        if key in ELSEWHERE:
            assert field.name in (Path(__file__).parents[1] / ELSEWHERE[key]).read_text(), key
            continue
        value, *others = SETTINGS[key]
        setting = f"{key}={value}"
        alone = [each for each in others if not each.startswith(f"{key}=")]
        changed = differ(facts(*alone), facts(*alone, setting))
        assert changed or key in unused(configured(*alone, setting)), key


@pytest.mark.parametrize("setting", NAMED)
def test_a_setting_without_effect_is_reported_until_what_it_needs_is_set(setting: str) -> None:
    key = setting.partition("=")[0]
    key = "trackers.file" if key.startswith("trackers") else key
    more = {
        "data.history": ["run.method=dpo", "data.train=demo"],
        "data.max_rows": ["data.train={path='texts.txt', max_rows=3}"],
        "data.text_rows": [CHATS],
    }.get(key, [])
    assert key in unused(configured(setting, *more))
    if NAMED[setting]:
        assert key not in unused(configured(setting, *NAMED[setting].split()))


def test_unused_settings_are_reported_at_the_start_and_explained() -> None:
    shown = dry_run_shown("lora.r=4", "trackers.file.path=x.csv")
    assert "--set: lora.r has no effect in this run: lora.enabled is not set" in shown
    assert "trackers.file has no effect in this run: the run does not have this tracker" in shown


def test_a_setting_that_is_overridden_is_reported_even_at_its_default_unless_it_turns_something_off() -> None:
    def found(*sets: str) -> set[str]:
        return set(unused(load(None, sets=["model.path=demo", "data.train=demo", *sets])))

    epochs = "training.num_train_epochs=3.0"
    assert found(epochs, "training.max_steps=10") == {"training.num_train_epochs"}
    assert found(epochs) == found("training.warmup_steps=0", "training.lr_scheduler_type=constant") == set()


VENDOR = """
import time
from fmstune import Tracker

class Slow(Tracker):
    def get_hf_callback(self):
        class Sleeps:  # no TrainerCallback, whose import would take the tracker's own process seconds
            def on_log(self, *args, **kwargs):
                time.sleep(60)

        return Sleeps()
"""


def test_a_tracker_in_process_has_the_configured_time_limit() -> None:
    Path("vendor.py").write_text(VENDOR)
    sets = ("tracking.trackers=['vendor:Slow']", "tracking.in_process_timeout=0.5", "training.max_steps=1",
            "tracking.check_timeout=600")  # fmt: skip
    shown = tune("out", *sets, "training.eval_strategy=no", "training.save_strategy=no")
    assert "did not return within 0.5" in " ".join(shown.split())
