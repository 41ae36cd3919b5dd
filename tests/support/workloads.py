"""A training for memory estimates."""

from __future__ import annotations

from fmstune.training.memory.estimate import Workload

SEVEN = Workload(
    weights=27_000_000_000, trained=27_000_000_000, largest_trained=524_000_000, optimizer="adamw_torch",
    rows=8, accumulation=1, tokens=16384, longest=2048, scored=8000, layers=32, hidden=4096, heads_width=4096,
    keys_width=4096, intermediate=11008, vocabulary=32000, heads=32, half=False, autocast=False,
    checkpointing=False, eager_attention=False, on_gpu=True, tiled_head=True,
)  # fmt: skip
"""A Llama of seven billion weights in float32, on rows of 2,048 tokens."""
