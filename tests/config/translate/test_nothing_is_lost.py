"""Each setting of another tool is translated, named as left, or named as one that sets nothing here."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import HfArgumentParser
from trl import DPOConfig, ModelConfig, ScriptArguments, SFTConfig

from fmstune.cli.init import _require_right
from fmstune.config.check.suggest import ALIASES
from fmstune.config.load.layers import keys_of_all_methods
from fmstune.config.load.load import load
from fmstune.config.schema.training import training_fields
from fmstune.config.translate.data_rules import DATA_RULES
from fmstune.config.translate.foreign import read_foreign
from fmstune.config.translate.machine_rules import MACHINE_RULES
from fmstune.config.translate.model_rules import MODEL_RULES
from fmstune.config.translate.tracker_rules import TRACKER_RULES
from fmstune.config.translate.training_rules import TRAINING_RULES
from fmstune.config.translate.translation import Translation, checked, translate

RULES = (MODEL_RULES, MACHINE_RULES, TRAINING_RULES, TRACKER_RULES, DATA_RULES)
NAMES = sorted({*ALIASES, *itertools.chain(*RULES), "no_such_setting", "a\nb"})
KNOWN = keys_of_all_methods()
LEAVES = (
    st.booleans()
    | st.integers(-2, 2000)
    | st.floats(0, 2, allow_nan=False)
    | st.sampled_from(
        ["auto", "lora", "2e-4", "a,b", "x/y", "there.jsonl", "", "all", "a\n[b]\nc = 1", '"""']
    )
)
KEYS = st.sampled_from(["path", "split", "name", "role", "_component_", "q"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)


def translated(folder: Path, settings: dict[str, Any]) -> tuple[Translation, str]:
    path = folder / "theirs.yml"
    path.write_text(yaml.safe_dump(settings))
    translation = translate(read_foreign(path), KNOWN)
    return translation, checked(
        translation, "x.toml", lambda text, over: _require_right(text, "x.toml", over)
    )


def holds_something(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(holds_something, value.values()))
    return value not in (None, "", [], {})


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=8))
def test_whatever_a_file_holds(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> None:
    settings["learning_rate"] = 1e-4  # so that there is something to translate
    translation, text = translated(tmp_path_factory.mktemp("file"), settings)
    sources = [*translation.source.values(), *(key for key, _, _ in translation.left)]
    named = {name for source in sources for name in source.split(", ")} | {*translation.needless}
    whole = {each.partition(".")[0] for each in named}
    given = {" ".join(key.split()) for key, value in settings.items() if holds_something(value)}
    assert {key.partition(".")[0] for key in given} <= {" ".join(each.split()) for each in whole}
    tomli.loads(text)


NUMBERS = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(1e-6, 1e-2),
        "num_train_epochs": st.integers(1, 5),
        "max_steps": st.integers(1, 100),
        "per_device_train_batch_size": st.integers(1, 8),
        "gradient_accumulation_steps": st.integers(1, 8),
        "warmup_ratio": st.floats(0.01, 0.5),
        "warmup_steps": st.integers(1, 50),
        "lr_scheduler_type": st.sampled_from(["cosine", "linear", "constant"]),
        "weight_decay": st.floats(0, 0.5),
        "max_length": st.integers(16, 4096),
        "seed": st.integers(0, 1000),
        "logging_steps": st.integers(1, 50),
        "gradient_checkpointing": st.booleans(),
        "packing": st.booleans(),
        "use_peft": st.booleans(),
        "lora_r": st.integers(1, 64),
        "lora_alpha": st.integers(1, 64),
    },
)


@given(NUMBERS)
def test_a_configuration_of_trl_has_the_values_that_trl_itself_reads(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("trl")
    settings = {"model_name_or_path": "demo", "dataset_name": "demo", **settings}
    _, text = translated(folder, settings)
    (folder / "x.toml").write_text(text)
    ours = load(folder / "x.toml", trains=False)
    parser = HfArgumentParser((ScriptArguments, SFTConfig, ModelConfig))
    ratio = settings.pop("warmup_ratio", None)
    _, training, model = parser.parse_dict({**settings, "output_dir": str(folder), "use_cpu": True})
    written_otherwise = ("lr_scheduler_type", "warmup_steps", "gradient_checkpointing")
    for name in settings:
        if hasattr(training, name) and name not in written_otherwise:
            assert ours.training.get(name, training_fields()[name].default) == getattr(training, name)
    if "lr_scheduler_type" in settings:
        assert ours.training["lr_scheduler_type"] == training.lr_scheduler_type.value
    if "warmup_steps" in settings or ratio:
        assert ours.training["warmup_steps"] == settings.get("warmup_steps", ratio)
    if "gradient_checkpointing" in settings:
        assert ours.training["activation_checkpointing"] == settings["gradient_checkpointing"]
    assert ours.lora.enabled == model.use_peft
    if model.use_peft:
        assert (ours.lora.r, ours.lora.alpha) == (model.lora_r, model.lora_alpha)
        assert ours.lora.dropout == model.lora_dropout
        assert ours.training["learning_rate"] == training.learning_rate


def test_the_learning_rate_is_that_of_trls_method(tmp_path: Path) -> None:
    settings = {"model_name_or_path": "m/m", "dataset_name": "d/d", "use_peft": True, "rl": "dpo"}
    _, text = translated(tmp_path, settings)
    assert (
        tomli.loads(text)["training"]["learning_rate"]
        == DPOConfig(output_dir="x", use_cpu=True).learning_rate
    )
