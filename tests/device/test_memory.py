"""The memory estimates and out-of-memory suggestions for a GPU are right."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.on_device import Device, Row, arguments, sets, train, write_rows, zero_config

pytestmark = pytest.mark.device

_QUANTIZED = ["--lora", *sets(bf16=True), "--set"]
_WAYS = {
    "float32": [],
    "bf16": sets(bf16=True),
    "packing": sets(packing=True, per_device_train_batch_size=8),
    "LoRA, bf16": ["--lora", *sets(bf16=True)],
    "activations checkpointed, bf16": sets(bf16=True, gradient_checkpointing=True),
    "QLoRA, 4 bits": [*_QUANTIZED, "model.quantization=4bit"],
    "QLoRA, 8 bits": [*_QUANTIZED, "model.quantization=8bit"],
    "ZeRO 2": [],
    "ZeRO 3, bf16": sets(bf16=True),
}
_STAGES = {"ZeRO 2": 2, "ZeRO 3, bf16": 3}
_NEEDED = {"QLoRA": "bitsandbytes", "ZeRO": "deepspeed"}


@pytest.mark.parametrize("way", _WAYS)
def test_the_estimate_is_within_a_tenth_of_the_peak(way: str, gpu: Device, row: Row, tmp_path: Path) -> None:
    needed = next((package for start, package in _NEEDED.items() if way.startswith(start)), "torch")
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    # All rows are about as long as the longest: the estimate is for the longest batch, which has to occur.
    # Packing fills each batch.
    alike = replace(gpu, rows=write_rows(tmp_path / "alike.jsonl", 64, 24, alike=True))
    settings = [*arguments(gpu), *sets(per_device_train_batch_size=16), *_WAYS[way]]
    if stage := _STAGES.get(way):
        settings += sets(deepspeed=zero_config(tmp_path / "zero.json", stage))
    run = train(gpu if way == "packing" else alike, tmp_path, *settings)
    off = run.estimated / run.peak - 1
    row(f"memory, {way}", f"estimate {off:+.0%}", run.losses, run.peak, run.estimated, run.seconds)
    assert abs(off) <= 0.1


def test_auto_batch_finds_a_size_that_fits(device: Device, row: Row, tmp_path: Path) -> None:
    wanted = 512 if device.is_gpu else 8
    run = train(
        device,
        tmp_path,
        *arguments(device),
        *sets(max_steps=1, per_device_train_batch_size=wanted),
        "--auto-batch",
    )
    (found,) = re.findall(r"(\d+) rows? at once", run.printed)
    assert wanted % int(found) == 0
    row("--auto-batch", f"{found} of {wanted} rows at once", run.losses, run.peak, run.estimated, run.seconds)


def test_the_suggestion_for_out_of_memory_helps(gpu: Device, row: Row, tmp_path: Path) -> None:
    too_much = [*arguments(gpu), *sets(max_steps=1, per_device_train_batch_size=500)]
    failed = train(gpu, tmp_path, *too_much, code=1)
    fits = re.search(r"It would fit with (.*?) \(", " ".join(failed.printed.split()))
    assert fits, failed.printed[-2000:]
    advised = dict(re.findall(r"training\.(\w+) = (\w+)", fits[1]))
    assert advised, fits[1]
    run = train(gpu, tmp_path, *too_much, *sets(**advised), "--overwrite")
    row("out of memory", f"helped: {fits[1]}", run.losses, run.peak, run.estimated, run.seconds)
