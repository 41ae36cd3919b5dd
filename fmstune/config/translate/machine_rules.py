"""What settings of precision, memory, kernels and parallelism are here, where the value differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.config.translate.foreign import Foreign
from fmstune.config.translate.rule import Here, Left, Rule, if_true, one, to

_FSDP = {"offload_params": "cpu_offload"}


def _precision(name: str) -> Rule:
    def rule(value: Any, theirs: Foreign) -> Here:
        if value == "full":
            return {"model.dtype": "bfloat16" if name == "bf16" else "float16"}
        return {} if value == "auto" else {f"training.{name}": value}

    return rule


def _checkpointing(value: Any, theirs: Foreign) -> Here:
    if value in ("offload", "offload_disk"):
        return {"training.activation_checkpointing": True, "training.activation_offloading": True}
    return {"training.activation_checkpointing": bool(value)}


def _reentrant(value: Any, theirs: Foreign) -> Here:
    return {"training.activation_checkpointing_kwargs": {"use_reentrant": bool(value)}}


def _fsdp(value: Any, theirs: Foreign) -> Here:
    return {"training.fsdp": True} if value else {}


def _fsdp_config(value: Any, theirs: Foreign) -> Here:
    ours = {}
    for name, its_value in value.items():
        name = str(name).removeprefix("fsdp_")
        ours[_FSDP.get(name, name)] = its_value
    for name in ("version", "use_orig_params", "sync_module_states", "limit_all_gathers", "forward_prefetch"):
        ours.pop(name, None)  # FSDP2 has none of them
    return {"training.fsdp": True, "training.fsdp_config": ours} if ours else {"training.fsdp": True}


def _deepspeed(value: Any, theirs: Foreign) -> Here:
    """A file, or one of ms-swift's own configurations."""
    if theirs.tool != "ms-swift" or "." in str(value):
        return {"training.deepspeed": value}
    if value not in ("zero0", "zero1", "zero2", "zero3"):
        raise Left("Name a file of DeepSpeed's settings.")
    stage = {"zero_optimization": {"stage": int(value[-1])}}
    names = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    return {"training.deepspeed": stage | {"bf16": {"enabled": "auto"}} | dict.fromkeys(names, "auto")}


def _plugins(value: Any, theirs: Foreign) -> Here:
    others = [name for name in value if not str(name).endswith(("LigerPlugin", "CutCrossEntropyPlugin"))]
    if others:
        raise Left("")
    return {}


MACHINE_RULES: Mapping[str, Rule] = {
    "bf16": _precision("bf16"),
    "fp16": _precision("fp16"),
    "tf32": _precision("tf32"),
    "gradient_checkpointing": _checkpointing,
    "activation_checkpointing": _checkpointing,
    "enable_activation_checkpointing": _checkpointing,
    "grad_checkpoint": _checkpointing,
    "use_reentrant_gc": _reentrant,
    "use_reentrant": _reentrant,
    "gradient_checkpointing_kwargs": to("training.activation_checkpointing_kwargs"),
    "enable_activation_offloading": if_true({"training.activation_offloading": True}),
    "activation_offloading": if_true({"training.activation_offloading": True}),
    "disable_gradient_checkpointing": if_true({"training.activation_checkpointing": False}),
    "enable_liger_kernel": if_true({"training.use_liger_kernel": True}),
    **dict.fromkeys(
        (
            "liger_rope",
            "liger_rms_norm",
            "liger_rms_norm_gated",
            "liger_glu_activation",
            "liger_swiglu",
            "liger_layer_norm",
            "liger_cross_entropy",
            "liger_fused_linear_cross_entropy",
        ),
        if_true({"training.use_liger_kernel": True}),
    ),
    "fsdp": _fsdp,
    "deepspeed": _deepspeed,
    "fsdp_config": _fsdp_config,
    **dict.fromkeys(
        (
            "tensor_parallel_size",
            "context_parallel_size",
            "sequence_parallel_degree",
            "expert_parallel_size",
            "dp_shard_size",
            "dp_replicate_size",
            "tensor_parallel_dim",
            "cp_size",
            "num_labels",
        ),
        one,
    ),
    "plugins": _plugins,
}
"""By the name of a setting, or its dotted key."""
