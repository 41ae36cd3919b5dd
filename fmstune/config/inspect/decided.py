"""Settings whose value a run decides, from its machine, model and data."""

from __future__ import annotations

from fmstune.config.methods.known import METHODS
from fmstune.config.schema.tables import RunConfig

_BY = {
    "optim": "adamw_torch_fused, or adamw_torch before torch 2.8",
    "bf16": "true if the device supports it, or as `accelerate launch` was asked",
    "fp16": "true on a GPU without bf16, or as `accelerate launch` was asked",
    "use_cpu": "true if there is no GPU",
    "dataloader_pin_memory": "true if there is a GPU",
    "pad_to_multiple_of": "the multiple that is fastest on the device",
    "padding_free": "true if the model supports it, and it is faster",
}
"""Fields of `[training]` that are decided by the run unless they are set, and how."""


def decided_by(config: RunConfig, name: str) -> str:
    """How a run decides a field of `[training]`; empty for one that is known in advance."""
    training = config.training
    given = {key for key in _BY if config.origins.get(f"training.{key}", "default") != "default"}
    if name in given or (name in ("bf16", "fp16") and given & {"bf16", "fp16"}):
        return ""
    if name == "padding_free" and (METHODS[config.run.method].compares or training.get("packing")):
        return ""
    keeps_best = training.get("load_best_model_at_end") or training.get("lr_scheduler_type") in (
        "reduce_lr_on_plateau",
        "greedy",
    )
    if name == "metric_for_best_model" and training.get(name) is None and keeps_best:
        return "loss, since the best weights are kept"
    if (
        name == "greater_is_better"
        and training.get(name) is None
        and (keeps_best or training.get("metric_for_best_model") is not None)
    ):
        return "true unless training.metric_for_best_model ends in loss"
    if name == "eval_steps" and training.get("eval_strategy") == "steps" and training.get(name) is None:
        return "training.logging_steps"
    return _BY.get(name, "")
