"""Choose the precision for the device, and find settings that it does not support."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fmstune.config.rules.accelerate import USE_CPU, is_on
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import combined

MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""The variable in which `accelerate launch` passes on its `--mixed_precision`."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision of the computation, in addition to the dtype of the weights, and the reason for it."""

    bf16: bool
    fp16: bool
    why: str

    def line(self, weights: str = "float32") -> str:
        """The precision as text: `bf16: this GPU supports it`. Without mixed precision it is that of the
        weights."""
        if not self.bf16 and not self.fp16 and weights != "float32":
            return f"{weights}: the dtype of the weights"
        return f"{'bf16' if self.bf16 else 'fp16' if self.fp16 else 'float32'}: {self.why}"


def precision(training: Mapping[str, Any]) -> Precision:
    """Choose bf16 if the device supports it, else fp16 on a GPU, else float32; the user's setting wins, then
    what `accelerate launch` was asked for. Its "no" is also its default, so it asks for nothing."""
    chosen, unset = _chosen(training), "tf32" not in training
    on_gpu = torch.cuda.is_available() and not training.get("use_cpu")
    # NVIDIA's images ask torch for TF32, in TORCH_ALLOW_TF32_CUBLAS_OVERRIDE.
    if on_gpu and unset and not _is_mixed(chosen) and multiplies_in_tf32():
        return replace(chosen, why=f"{chosen.why}; matrix products in TF32, as torch is set here")
    return chosen


def multiplies_in_tf32() -> bool:
    """Whether matrix products of float32 are computed in TF32.

    torch 2.9 and later have a new setting for it, which transformers uses, and refuse to tell the old one
    afterwards.
    """
    new: str | None = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return torch.get_float32_matmul_precision() != "highest" if new is None else new == "tf32"


def _chosen(training: Mapping[str, Any]) -> Precision:
    if "bf16" in training or "fp16" in training:
        return Precision(bool(training.get("bf16", False)), bool(training.get("fp16", False)), "as set")
    if (asked := os.environ.get(MIXED_PRECISION, "").lower()) in ("bf16", "fp16"):
        return Precision(asked == "bf16", asked == "fp16", f"as set by {MIXED_PRECISION}")
    if training.get("use_cpu") or not torch.accelerator.is_available():
        return Precision(False, False, "the device is a CPU")
    if not torch.cuda.is_available():
        kind = torch.accelerator.current_accelerator().type
        return Precision(False, False, f"the safe choice on {kind}; training.bf16 = true may be faster")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(True, False, "this GPU supports it")
    return Precision(False, True, "this GPU does not support bf16")


def check_device(config: RunConfig) -> None:
    """Raise `ConfigError` with all settings that this machine's device does not support."""
    problems = list(_problems(config))
    if problems:
        raise combined(problems)


def _problems(config: RunConfig) -> Iterator[str]:
    training, attention = config.training, config.model.attn_implementation or ""
    on_cpu = bool(training.get("use_cpu")) or not torch.accelerator.is_available()
    cuda = torch.cuda.is_available() and not on_cpu
    if cuda and training.get("bf16") and not torch.cuda.is_bf16_supported():
        yield (
            f"{config.at('training.bf16')}training.bf16: this GPU does not support bf16; use training.fp16 = "
            "true."
        )
    if not on_cpu and is_on(USE_CPU):  # accelerate would use the CPU, and transformers the GPU
        yield (
            f"{USE_CPU}={os.environ[USE_CPU]} (in the environment, or from `accelerate launch`) is not "
            "supported: use training.use_cpu = true instead."
        )
    if on_cpu and precision(training).fp16 and not training.get("deepspeed"):
        asked = f"{config.at('training.fp16')}training.fp16 = true"
        asked = asked if training.get("fp16") else f"{MIXED_PRECISION}=fp16"
        yield (
            f"{asked} needs a GPU, but there is none: accelerate would compute in float32; use "
            "training.bf16 = true, or leave it out."
        )
    if training.get("tf32") and not (cuda and torch.cuda.get_device_capability()[0] >= 8):
        device = "this GPU is older" if cuda else "this is a CPU" if on_cpu else "this is not one"
        yield (
            f"{config.at('training.tf32')}training.tf32 needs an NVIDIA GPU, Ampere or later, but {device}; "
            "leave it out."
        )
    if on_cpu and training.get("activation_offloading"):
        yield (
            f"{config.at('training.activation_offloading')}training.activation_offloading moves activations "
            "from a GPU to main memory, but there is no GPU; use training.activation_checkpointing = true."
        )
    if on_cpu and training.get("use_liger_kernel"):
        yield (
            f"{config.at('training.use_liger_kernel')}training.use_liger_kernel needs a GPU, but there is "
            "none; leave it out."
        )
    if on_cpu and training.get("fsdp"):  # accelerate would train the whole model in each process instead
        yield (
            f"{config.at('training.fsdp')}training.fsdp shards the model over GPUs, but there is none; "
            "leave it out."
        )
    backend = training.get("ddp_backend") or "gloo"
    if on_cpu and backend not in ("gloo", "mpi"):
        yield (
            f"{config.at('training.ddp_backend')}training.ddp_backend = {backend!r} needs GPUs, but there is "
            "none; leave it out."
        )
    if on_cpu and "flash" in attention:
        yield (
            f"{config.at('model.attn_implementation')}model.attn_implementation = {attention!r} needs a GPU, "
            "but there is none; use sdpa."
        )
    if on_cpu and config.model.quantization:
        yield (
            f"{config.at('model.quantization')}model.quantization = {config.model.quantization!r} needs a "
            "GPU, but this run uses a CPU; leave it out to train a LoRA adapter on unquantized weights."
        )
    held = config.model.dtype
    if cuda and "flash" in attention and held == "float32" and not _is_mixed(precision(training)):
        yield (
            f"{config.at('model.attn_implementation')}model.attn_implementation = {attention!r} supports "
            "only bf16 and fp16; set training.bf16 = true, or use sdpa."
        )
    if held == "float16" and precision(training).fp16 and config.adapter is None:
        yield (
            f"{config.at('model.dtype')}model.dtype = 'float16' with training.fp16 cannot train all weights: "
            "their gradients would vanish; leave out model.dtype, or train an adapter (--lora)."
        )


def _is_mixed(chosen: Precision) -> bool:
    return chosen.bf16 or chosen.fp16
