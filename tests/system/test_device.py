"""Settings that this machine cannot run are reported in one sentence each, with a remedy, before the model
loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.system.device import precision
from tests.support.tuned import dry_run_shown, tune, weights

on_a_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without a GPU")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "training.optim=adamw_bnb_8bit",
            "needs bitsandbytes: `pip install bitsandbytes`, or use adamw_torch",
        ),
        ("training.optim=lomo", "needs lomo-optim"),
        ("training.use_liger_kernel=true", "needs liger-kernel: `pip install liger-kernel`"),
        ("training.deepspeed=x.json", "needs deepspeed"),
        ("model.attn_implementation=flash_attention_2", "needs flash-attn: .* or use sdpa"),
    ],
)
def test_a_missing_package_is_reported_with_the_configuration(setting: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        load(None, [], [setting])
    assert str(error.value).startswith("--set: ")


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler: install g\\+\\+"):
        load(None, [], ["training.torch_compile=true"])


@on_a_cpu
def test_everything_that_a_cpu_cannot_do_is_reported_together_and_nothing_is_created() -> None:
    with pytest.raises(ConfigError) as error:
        tune("out", "training.tf32=true", "training.activation_offloading=true")
    assert "training.tf32 needs an NVIDIA GPU, Ampere or later, but this is a CPU" in str(error.value)
    assert "there is no GPU; use training.activation_checkpointing = true" in str(error.value)
    assert not Path("out").exists()


@on_a_cpu
@pytest.mark.parametrize("setting", ["training.fsdp=true", "training.ddp_backend=nccl"])
def test_settings_that_shard_a_model_over_gpus_are_refused_without_one(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]}.* GPUs, but there is none; leave it"):
        tune("out", setting)
    assert not Path("out").exists()


def test_deepspeed_from_python_needs_a_launcher_for_its_process_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An empty package stands in for DeepSpeed, which is not installed: it is refused before it is imported.
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.deepspeed needs torch's process group.*with torchrun"):
        tune("out", "training.deepspeed={zero_optimization={stage=2}}")
    assert not Path("out").exists()


@on_a_cpu
def test_an_unsupported_precision_is_reported_with_its_reason() -> None:
    assert "parameters · float32: the device is a CPU" in dry_run_shown()
    assert precision({"bf16": True}).line("bfloat16") == "bf16: as set"
    assert precision({"bf16": False}).line("bfloat16") == "bfloat16: the dtype of the weights"
    assert precision({"bf16": False}).line("float32") == "float32: as set"


@on_a_cpu
def test_bf16_works_on_a_cpu_on_request() -> None:
    assert "bf16: as set" in tune("out", "training.bf16=true")


@on_a_cpu
def test_the_precision_of_accelerate_launch_is_used_and_named_and_a_setting_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tune("plain", "training.bf16=false")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "bf16: as set by ACCELERATE_MIXED_PRECISION" in tune("launched")
    assert "float32: as set" in tune("set", "training.bf16=false")
    asked = tune("asked", "training.bf16=true")
    assert "bf16: as set\n" in asked
    trained = {name: weights(name) for name in ("plain", "launched", "set", "asked")}
    assert trained["set"] == trained["plain"]
    assert trained["launched"] == trained["asked"] != trained["plain"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("enable_tf32(True)", True),
        ("enable_tf32(False)", False),
        ("torch.set_float32_matmul_precision('high')", True),
        ("torch.set_float32_matmul_precision('highest')", False),
        ("", False),
    ],
)
def test_tf32_is_known_by_each_setting_of_torch(setting: str, expected: bool) -> None:
    """In a process of its own: torch refuses to read the older setting after the newer one was used."""
    script = f"""
import torch
from transformers.utils.import_utils import enable_tf32
from fmstune.system.device import multiplies_in_tf32
{setting}
print(multiplies_in_tf32())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)
