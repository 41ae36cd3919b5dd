"""What the device at hand can compute: the precision that it gets, and the settings that it cannot run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fmstune.config.schema.tables import RunConfig
from fmstune.errors import combined


@dataclass(frozen=True, slots=True)
class Precision:
    """What is computed in, next to the float32 of the weights that are trained, and why that."""

    bf16: bool
    fp16: bool
    why: str

    def line(self) -> str:
        """For people: `bf16: this GPU computes in it`."""
        return f"{'bf16' if self.bf16 else 'fp16' if self.fp16 else 'float32'}: {self.why}"


def precision(training: Mapping[str, Any]) -> Precision:
    """bf16 where the device computes in it, else fp16 on a GPU, else float32; the user's word wins."""
    if "bf16" in training or "fp16" in training:
        return Precision(bool(training.get("bf16", False)), bool(training.get("fp16", False)), "as set")
    if training.get("use_cpu") or not torch.accelerator.is_available():
        return Precision(False, False, "a CPU")
    if not torch.cuda.is_available():
        kind = torch.accelerator.current_accelerator().type
        return Precision(False, False, f"what is sure to work on {kind}; training.bf16 = true may be faster")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(True, False, "this GPU computes in it")
    return Precision(False, True, "this GPU does not compute in bf16")


def check_device(config: RunConfig) -> None:
    """Raises `ConfigError` with all settings that this machine's device cannot run."""
    problems = list(_problems(config))
    if problems:
        raise combined(problems)


def _problems(config: RunConfig) -> Iterator[str]:
    training, attention = config.training, config.model.attn_implementation or ""
    on_cpu = bool(training.get("use_cpu")) or not torch.accelerator.is_available()
    cuda = torch.cuda.is_available() and not on_cpu
    if cuda and training.get("bf16") and not torch.cuda.is_bf16_supported():
        yield f"{config.at('training.bf16')}training.bf16: this GPU has no bf16; use training.fp16 = true."
    if training.get("tf32") and not (cuda and torch.cuda.get_device_capability()[0] >= 8):
        device = "this GPU is older" if cuda else "this is a CPU" if on_cpu else "this is none"
        yield (
            f"{config.at('training.tf32')}training.tf32 is for NVIDIA GPUs from Ampere on, and {device}; "
            "leave it out."
        )
    if on_cpu and training.get("activation_offloading"):
        yield (
            f"{config.at('training.activation_offloading')}training.activation_offloading moves activations "
            "from a GPU to main memory, and there is no GPU; use training.activation_checkpointing = true."
        )
    if on_cpu and training.get("use_liger_kernel"):
        yield (
            f"{config.at('training.use_liger_kernel')}training.use_liger_kernel is code for GPUs, and there "
            "is none; leave it out."
        )
    if on_cpu and training.get("fsdp"):  # accelerate would train the whole model in each process instead
        yield (
            f"{config.at('training.fsdp')}training.fsdp shards the model over GPUs, and there is none; "
            "leave it out."
        )
    backend = training.get("ddp_backend") or "gloo"
    if on_cpu and backend not in ("gloo", "mpi"):
        yield (
            f"{config.at('training.ddp_backend')}training.ddp_backend = {backend!r} joins GPUs, and there is "
            "none; leave it out."
        )
    if on_cpu and "flash" in attention:
        yield (
            f"{config.at('model.attn_implementation')}model.attn_implementation = {attention!r} is code for "
            "GPUs, and there is none; use sdpa."
        )
    if on_cpu and config.model.quantization:
        yield (
            f"{config.at('model.quantization')}model.quantization = {config.model.quantization!r} needs a "
            "GPU, and this run computes on a CPU; leave it out to train a LoRA adapter over whole weights."
        )
    held = config.model.dtype
    if cuda and "flash" in attention and held == "float32" and not _mixed(training):
        yield (
            f"{config.at('model.attn_implementation')}model.attn_implementation = {attention!r} computes in "
            "bf16 or fp16 only; set training.bf16 = true, or use sdpa."
        )
    if held == "float16" and precision(training).fp16 and config.adapter is None:
        yield (
            f"{config.at('model.dtype')}model.dtype = 'float16' with training.fp16 cannot train all weights: "
            "their gradients would vanish; leave model.dtype out, or train an adapter (--lora)."
        )


def _mixed(training: Mapping[str, Any]) -> bool:
    chosen = precision(training)
    return chosen.bf16 or chosen.fp16
