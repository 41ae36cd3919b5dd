"""Which of torch's kernels compute attention on a GPU.

cuDNN's, which torch prefers on Hopper and later, builds a plan for each shape that it has not seen. On an
H100 (torch 2.11, a model of 256 million weights, 8 rows of 60 to 700 tokens at once) that took 450 ms of each
step with padding, and 1,400 ms where each row has its own attention; with other kernels a step takes some 80.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


def leave_out_planned() -> None:
    """Leave out cuDNN's attention from here on, in all of the process. A run puts it back at its end.

    With `TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1` torch keeps one plan for all lengths (pytorch/pytorch#155958),
    and it stays.
    """
    if os.environ.get("TORCH_CUDNN_SDPA_AVOID_RECOMPILE") != "1":
        torch.backends.cuda.enable_cudnn_sdp(False)


@contextlib.contextmanager
def without_planned() -> Iterator[None]:
    """Leave out cuDNN's attention for a while: texts get longer with each token."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    leave_out_planned()
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
