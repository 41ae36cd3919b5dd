"""sft: learn from examples (supervised fine-tuning)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.methods.record import Method, Problem


def _unused(training: Mapping[str, Any]) -> Iterator[Problem]:
    if training.get("loss_type") == "dft":
        yield "label_smoothing_factor", "the loss is dft"


SFT = Method(
    name="sft",
    learns="examples",
    form="tokens",
    config=("trl", "trainer/sft_config.py", "SFTConfig"),
    lora_learning_rate=2e-4,  # of 2e-5
    shown=(("mean_token_accuracy", "accuracy"),),
    results=("eval/mean_token_accuracy",),
    unused=_unused,
)
