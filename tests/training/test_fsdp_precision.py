"""FSDP in 16 bits computes the losses of a plain run in 16 bits, with all their digits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.commands import fmstune
from tests.support.end_to_end import journal_points
from tests.support.fsdp_on_cpu import train_sharded
from tests.support.preferred import pairs

SETTINGS = [
    part
    for each in (
        "training.bf16=true", "training.max_steps=3", "training.logging_steps=1",
        'training.eval_strategy="no"', 'training.save_strategy="no"',
    )
    for part in ("--set", each)
]  # fmt: skip


def losses(run: Path) -> list[float]:
    return [value for (_, name, _), value in sorted(journal_points(run).items()) if name == "loss"]


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_losses_are_not_rounded_to_16_bits(method: str, tmp_path: Path) -> None:
    data = "demo"
    if method != "sft":
        data = "pairs.jsonl"
        (tmp_path / data).write_text("".join(f"{json.dumps(each)}\n" for each in pairs(24)))
    common = [
        "--nproc",
        "2",
        "--method",
        method,
        "--model",
        "demo",
        "--data",
        data,
        *SETTINGS,
        "--output-dir",
    ]
    plain = fmstune("train", *common, "plain", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    sharded = train_sharded(tmp_path, *common, "sharded")
    assert sharded.returncode == 0, sharded.stderr
    found, expected = losses(tmp_path / "sharded"), losses(tmp_path / "plain")
    assert found == pytest.approx(expected, abs=2e-3)
    if method == "dpo":
        assert found[0] == pytest.approx(math.log(2), abs=1e-6)
