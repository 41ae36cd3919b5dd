"""Each way to train on the device gives the results of float32 with padding, within its own precision."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.on_device import STEPS, Device, Row, Seen, arguments, run, seen, sets, train, zero_config
from tests.support.once import made_once

pytestmark = pytest.mark.device


@dataclass(frozen=True)
class Case:
    """A way to train. Its losses differ by at most `apart` from those of the reference: the same rows at the
    same steps in float32; `None` if it trains something else."""

    arguments: tuple[str, ...]
    apart: float | None
    needs: str = ""
    """An optional package."""
    gpu: bool = False
    """Whether a CPU cannot do it."""


def _training(**values: object) -> tuple[str, ...]:
    return tuple(sets(**values))


CASES = {
    "bf16": Case(_training(bf16=True), 0.1),
    # Its first updates are skipped while the loss scale is searched, so that it learns later.
    "fp16": Case(_training(fp16=True), None, gpu=True),
    "TF32": Case(_training(tf32=True), 0.01, gpu=True),
    "weights in bfloat16": Case(("--set", "model.dtype=bfloat16"), 0.3),
    "padded rows": Case(_training(padding_free=False), 1e-3),
    "eager attention": Case(("--set", "model.attn_implementation=eager"), 1e-3),
    "FlashAttention 2": Case(
        ("--set", "model.attn_implementation=flash_attention_2", *_training(bf16=True)),
        0.1,
        "flash_attn",
        True,
    ),
    "torch.compile": Case(_training(torch_compile=True), 1e-3, gpu=True),
    "activations checkpointed": Case(_training(gradient_checkpointing=True), 1e-3),
    "packing": Case(_training(packing=True), None),
    "LoRA": Case(("--lora",), None),
    "QLoRA, 4 bits": Case(("--lora", "--set", "model.quantization=4bit"), None, "bitsandbytes", True),
    "QLoRA, 8 bits": Case(("--lora", "--set", "model.quantization=8bit"), None, "bitsandbytes", True),
    "FSDP of one process": Case(_training(fsdp="full_shard"), 1e-3, gpu=True),
    "FSDP of one process, its state sharded": Case(
        _training(
            fsdp=True,
            fsdp_config='{version=2, state_dict_type="SHARDED_STATE_DICT"}',
            save_strategy="steps",
            save_steps=4,
        ),
        1e-3,
        gpu=True,
    ),
    "FSDP of one process, bf16": Case(_training(fsdp=True, bf16=True), 0.1, gpu=True),
    "FSDP of one process, LoRA": Case(("--lora", *_training(fsdp=True, bf16=True)), None, gpu=True),
}


@pytest.fixture(scope="module")
def reference(device: Device) -> Seen:
    """Plain float32."""

    def run(folder: Path) -> None:
        # TF32 would be another precision, which `training.tf32` enables.
        done = train(device, folder, *arguments(device, tf32=False))
        (folder / "seconds").write_text(str(done.seconds))

    folder = made_once("reference", run)
    return seen(folder / "out", seconds=float((folder / "seconds").read_text()))


def _check(run: Seen, steps: int = STEPS) -> None:
    assert len(run.losses) == steps
    assert all(map(math.isfinite, run.losses))
    assert min(run.losses[1:]) < run.losses[0], run.losses


def test_float32_learns(reference: Seen, row: Row) -> None:
    _check(reference)
    row("float32", "learns", reference.losses, reference.peak, reference.estimated, reference.seconds)


@pytest.mark.parametrize("name", CASES)
def test_it_trains_the_same(name: str, device: Device, reference: Seen, row: Row, tmp_path: Path) -> None:
    case = CASES[name]
    if case.gpu and not device.is_gpu:
        pytest.skip("needs CUDA")
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    run = train(device, tmp_path, *arguments(device), *case.arguments)
    _check(run)
    what = "learns"
    if case.apart is not None:
        apart = max(abs(a - b) for a, b in zip(run.losses, reference.losses, strict=True))
        what = f"losses at most {apart:.0e} from float32's"
        assert apart <= case.apart, (run.losses, reference.losses)
    assert list((tmp_path / "out").glob("*model.safetensors"))
    row(name, what, run.losses, run.peak, run.estimated, run.seconds)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_the_same(
    stage: int, gpu: Device, reference: Seen, row: Row, tmp_path: Path
) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    config = zero_config(tmp_path / "zero.json", stage)
    run = train(gpu, tmp_path, *arguments(gpu), "--nproc", "1", *sets(deepspeed=config))
    _check(run)
    apart = max(abs(a - b) for a, b in zip(run.losses, reference.losses, strict=True))
    assert apart < 0.1
    assert (tmp_path / "out/model.safetensors").exists()
    row(
        f"DeepSpeed, ZeRO {stage}",
        f"losses at most {apart:.0e} from float32's",
        run.losses,
        run.peak,
        run.estimated,
        run.seconds,
    )


def test_preferences_are_learned(device: Device, row: Row, tmp_path: Path) -> None:
    common = arguments(device)
    run = train(device, tmp_path, "--method", "dpo", "--data", str(device.pairs), *common)
    _check(run)
    assert run.losses[0] == pytest.approx(math.log(2), abs=0.02)  # the model is still its own reference
    row("DPO", "learns", run.losses, run.peak, run.estimated, run.seconds)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    precision: str, device: Device, row: Row, tmp_path: Path
) -> None:
    common = [*arguments(device), *sets(save_strategy="steps", save_steps=4)]
    if precision == "bf16":
        common += sets(bf16=True)
    whole = train(device, tmp_path, *common, out="whole")
    resumed = train(device, tmp_path, *common, "--resume", "whole/checkpoint-4", out="resumed")
    apart = max(abs(a - b) for a, b in zip(whole.losses[4:], resumed.losses, strict=True))
    # GPU kernels add in an order that differs from run to run.
    assert apart <= (5e-3 if device.is_gpu else 0.0), (whole.losses, resumed.losses)
    what = "bitwise" if apart == 0 else f"losses at most {apart:.0e} apart"
    row(f"resumed, {precision}", what, resumed.losses, resumed.peak, resumed.estimated, resumed.seconds)


def test_a_model_generates(device: Device, row: Row, tmp_path: Path) -> None:
    asked = ["--prompt", "Question: What is it?\nAnswer:", "--raw", "--json", "--max-new-tokens", "20"]
    printed, seconds = run(["fmstune", "generate", str(device.model), *asked], tmp_path)
    (answer,) = json.loads(printed[printed.index("[\n") :])
    assert answer["answer"].strip()
    row("generate", f"{len(answer['answer'].split())} words", (), 0.0, 0.0, seconds)


def test_gpu_metrics_are_recorded(gpu: Device, tmp_path: Path, row: Row) -> None:
    if importlib.util.find_spec("pynvml") is None:
        pytest.skip("nvidia-ml-py is not installed")
    run = train(gpu, tmp_path, *arguments(gpu), "--set", "resources.interval=1")
    names = {name for stage, name in run.metrics if stage == "system" and "gpu" in name}
    assert any("memory" in name for name in names), sorted(run.metrics)
    assert any("util" in name or "percent" in name for name in names), sorted(names)
    row("system metrics", f"{len(names)} of the GPU", run.losses, run.peak, run.estimated, run.seconds)
