"""Which of torch's kernels compute attention on a GPU.

cuDNN's, which torch prefers on Hopper and later, builds a plan for each new shape. On an H100 (torch 2.11,
a model of 256 million weights, 8 rows of 60 to 700 tokens per batch) that took 450 ms of each step with
padding, and 1,400 ms with a separate attention for each row; with other kernels a step takes about 80 ms.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


def disable_cudnn_attention() -> None:
    """Disable cuDNN's attention from here on in the whole process. A run restores it when it ends.

    With `TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1` torch keeps one plan for all lengths (pytorch/pytorch#155958),
    and cuDNN stays enabled.
    """
    if os.environ.get("TORCH_CUDNN_SDPA_AVOID_RECOMPILE") != "1":
        torch.backends.cuda.enable_cudnn_sdp(False)


@contextlib.contextmanager
def cudnn_attention_disabled() -> Iterator[None]:
    """Disable cuDNN's attention temporarily: texts get longer with each token."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    disable_cudnn_attention()
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
