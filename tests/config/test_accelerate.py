"""Environment variables that make accelerate change the training are taken over or refused, never obeyed in
silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.load.load import load
from fmstune.errors import ConfigError

PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in filter(lambda name: name.startswith(PREFIXES), list(os.environ)):
        monkeypatch.delenv(name)


SWITCHES = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "1",
    "ACCELERATE_USE_MEGATRON_LM": "yes",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "True",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "1",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_MIXED_PRECISION": "fp8",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
}


@given(st.dictionaries(st.sampled_from(sorted(SWITCHES)), st.booleans(), min_size=1, max_size=3))
def test_each_switch_that_changes_the_training_is_refused_by_its_name(chosen: dict[str, bool]) -> None:
    harmless = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
    with pytest.MonkeyPatch.context() as patched:
        for name, on in chosen.items():
            patched.setenv(name, SWITCHES[name] if on else harmless.get(name, "no"))
        asked = [name for name, on in chosen.items() if on]
        if not asked:
            load(None)
            return
        with pytest.raises(ConfigError) as error:
            load(None)
        for name in chosen:
            assert (f"{name}={SWITCHES[name]} " in str(error.value)) == (name in asked)


@pytest.mark.parametrize(
    ("variable", "value", "setting"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "eager", "training.torch_compile_backend=eager"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "training.gradient_accumulation_steps=4"),
        ("ACCELERATE_USE_FSDP", "true", "training.fsdp=true"),
    ],
)
def test_a_switch_that_says_what_the_configuration_says_is_accepted(
    variable: str, value: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    load(None, sets=[setting])
