"""What is said of a GPU's memory before a run, and when it runs out, is true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.on_device import Device, Row, arguments, sets, train

pytestmark = pytest.mark.device

_WAYS = {
    "float32": [],
    "bf16": sets(bf16=True),
    "LoRA, bf16": ["--lora", *sets(bf16=True)],
    "activations checkpointed, bf16": sets(bf16=True, gradient_checkpointing=True),
}


@pytest.mark.parametrize("way", _WAYS)
def test_the_estimate_is_within_a_tenth_of_the_peak(way: str, gpu: Device, row: Row, tmp_path: Path) -> None:
    run = train(gpu, tmp_path, *arguments(gpu), *sets(per_device_train_batch_size=16), *_WAYS[way])
    off = run.estimated / run.peak - 1
    row(f"memory, {way}", f"estimate {off:+.0%}", run.losses, run.peak, run.estimated, run.seconds)
    assert abs(off) <= 0.1


def test_a_batch_is_found_that_fits(device: Device, row: Row, tmp_path: Path) -> None:
    wanted = 512 if device.is_gpu else 8
    run = train(
        device,
        tmp_path,
        *arguments(device),
        *sets(max_steps=2, per_device_train_batch_size=wanted),
        "--auto-batch",
    )
    (found,) = re.findall(r"(\d+) rows? at once", run.printed)
    assert wanted % int(found) == 0
    row("--auto-batch", f"{found} of {wanted} rows at once", run.losses, run.peak, run.estimated, run.seconds)


def test_what_is_advised_when_memory_runs_out_helps(gpu: Device, row: Row, tmp_path: Path) -> None:
    too_much = [*arguments(gpu), *sets(max_steps=2, per_device_train_batch_size=2000)]
    failed = train(gpu, tmp_path, *too_much, code=1)
    advised = re.findall(r"--set training\.[a-z_]+=\S+", failed.printed)
    assert advised, failed.printed[-2000:]
    more = [part.rstrip(".,;)") for advice in advised for part in shlex.split(advice)]
    run = train(gpu, tmp_path, *too_much, *more, "--overwrite")
    row("out of memory", f"helped: {' '.join(more[1::2])}", run.losses, run.peak, run.estimated, run.seconds)
