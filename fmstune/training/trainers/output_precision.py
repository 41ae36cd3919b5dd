"""The precision of what a model returns when FSDP shards it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import convert_to_fp32


class KeepsOutputPrecision:
    """A mixin for a Trainer, before it: what FSDP2 computes in 16 bits is returned as it was computed.

    Accelerate asks FSDP2 to cast each output to 16 bits, the log-probabilities as well, which are computed in
    float32. In bfloat16 they have three digits: the loss of DPO, 0.6931, became 0.6914.
    """

    accelerator: Any

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's, with that changed; trainers shard a reference model right after it."""
        trainer: Any = super()
        trainer.create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        policy: Any = getattr(plugin, "mixed_precision_policy", None)
        if plugin is not None and getattr(policy, "output_dtype", None) in (torch.bfloat16, torch.float16):
            plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def return_float32(trainer: Any) -> None:
    """Let the trained model return float32 where FSDP2 computes in 16 bits, as accelerate does without FSDP:
    ORPO and reward models compute their losses from its logits, and would do so in 16 bits."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
        trainer.model.register_forward_hook(_in_float32)


def _in_float32(module: torch.nn.Module, args: Any, output: Any) -> Any:
    return convert_to_fp32(output)
