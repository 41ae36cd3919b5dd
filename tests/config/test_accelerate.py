"""Environment variables that make accelerate change the training are taken over or refused, never obeyed in
silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.system.device import check_device
from fmstune.training.arguments import training_arguments

PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "TORCH_COMPILE_", "TORCHDYNAMO_")


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


@pytest.mark.parametrize("value", ["foo", "", " true"])
@pytest.mark.parametrize(
    "name", ["ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_DEBUG_MODE"]
)
def test_a_switch_that_accelerate_cannot_read_is_refused_by_its_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} = '{value}' in the environment is neither true nor false"):
        load(None)


@pytest.mark.parametrize("device", ["cuda", "meta", "cpu", ""])
def test_accelerates_device_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
    with pytest.raises(ConfigError, match=f"ACCELERATE_TORCH_DEVICE={device} .* use training.use_cpu"):
        load(None)


COMPILED = "training.torch_compile_backend=eager"


@pytest.mark.parametrize(
    ("variable", "value", "setting"),
    [
        ("FSDP_OFFLOAD_PARAMS", "true", "training.fsdp=true"),
        ("FSDP_VERSION", "2", "training.fsdp=true"),
        ("ACCELERATE_DYNAMO_MODE", "max-autotune", COMPILED),
        ("ACCELERATE_DYNAMO_USE_FULLGRAPH", "true", COMPILED),
        ("ACCELERATE_DYNAMO_USE_DYNAMIC", "true", COMPILED),
        ("TORCHDYNAMO_DISABLE", "1", COMPILED),
        ("TORCH_COMPILE_DISABLE", "1", COMPILED),
    ],
)
def test_a_variable_that_fills_what_a_setting_leaves_open_is_refused_with_that_setting(
    variable: str, value: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    load(None)
    with pytest.raises(ConfigError, match=f"{variable}={value} "):
        load(None, sets=[setting])


def test_deepspeeds_options_of_accelerate_are_refused_beside_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "0.1")
    with pytest.raises(ConfigError) as error:
        load(None, sets=["training.deepspeed=zero.json"])
    assert "ACCELERATE_USE_DEEPSPEED" not in str(error.value)
    for name in ("ACCELERATE_DEEPSPEED_ZERO_STAGE=3", "ACCELERATE_GRADIENT_CLIPPING=0.1"):
        assert f"{name} " in str(error.value)


def test_the_mode_that_the_configuration_sets_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "reduce-overhead")
    load(None, sets=[COMPILED, "training.torch_compile_mode=reduce-overhead"])


def test_accelerates_default_does_not_compile_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_DYNAMIC", "False")
    config = load(None, sets=[COMPILED])
    training_arguments(config, Path("out"))
    assert TorchDynamoPlugin(backend="eager").dynamic is None


@pytest.mark.parametrize(
    ("setting", "variable", "named"),
    [
        ("true", "no", "training.fp16 = true needs a GPU"),
        (None, "fp16", "ACCELERATE_MIXED_PRECISION=fp16 needs"),
    ],
)
def test_fp16_without_a_gpu_is_refused_since_it_would_be_float32(
    setting: str | None, variable: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", variable)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=named):
        check_device(load(None, sets=[f"training.fp16={setting}"] if setting else []))


def test_a_cpu_for_accelerate_alone_is_refused_where_transformers_would_use_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"ACCELERATE_USE_CPU=True .* use training.use_cpu = true instead"):
        check_device(load(None))
    check_device(load(None, sets=["training.use_cpu=true"]))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    check_device(load(None))


def test_tf32_that_torch_uses_without_a_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in NVIDIA's images, whose TORCH_ALLOW_TF32_CUBLAS_OVERRIDE torch reads at its import."""
    script = """
import torch
from fmstune.system.device import precision
for gpu in (True, False):
    torch.cuda.is_available = torch.accelerator.is_available = lambda: gpu
    for more in ({}, {"tf32": False}, {"use_cpu": True}):
        print(precision({"bf16": False, **more}).line())
"""
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "float32: as set; matrix products in TF32, as torch is set here",
        *["float32: as set"] * 5,
    ]
