"""The model FLOPs utilisation (MFU): the share of the devices' peak that a training uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fmstune.resources.peaks import Precision, operations_per_token, peak_of
from fmstune.system.device import multiplies_in_tf32
from fmstune.training.tuned_trainer import TunedTrainer

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Utilisation:
    """`operations` per token, and `peak`, the operations per second of all devices together."""

    operations: float
    peak: float

    def share(self, tokens: int, seconds: float) -> float:
        """The share of the peak reached with this many tokens in this many seconds."""
        return self.operations * tokens / seconds / self.peak


def utilisation(trainer: TunedTrainer) -> Utilisation | None:
    """The MFU of a trainer that has been built but not started. `None` if it cannot be determined: on devices
    with unknown peak (including CPUs), for mixture-of-experts models, where a token uses only some experts,
    for methods that need more than one pass per token, and for tokens that TRL does not count."""
    device = trainer.args.device
    if device.type != "cuda" or trainer.method != "sft":
        return None
    peak = peak_of(torch.cuda.get_device_name(device), _precision(trainer))
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    if peak is None or any(getattr(model.config.get_text_config(), name, None) for name in _EXPERTS):
        return None
    operations = operations_per_token(*weights_of(model))
    return Utilisation(operations, peak * trainer.args.world_size)


def weights_of(model: Any) -> tuple[int, int]:
    """The number of weights that each token is multiplied with, and how many of them are trained. Embeddings
    are lookups, so they count only if the head shares them."""
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    looked_up = getattr(into, "weight", None)
    tied = looked_up is not None and looked_up is getattr(out, "weight", None)
    left_out = 0 if looked_up is None or tied else looked_up.numel()
    trained = sum(
        weight.numel()
        for weight in model.parameters()
        if weight.requires_grad and (tied or weight is not looked_up)
    )
    return int(model.num_parameters()) - left_out, trained


def _precision(trainer: TunedTrainer) -> Precision:
    args = trainer.args
    sizes = {weight.element_size() for weight in trainer.model.parameters() if weight.is_floating_point()}
    if args.bf16 or args.fp16 or sizes <= {2}:
        return "half"
    return "tf32" if multiplies_in_tf32() else "float32"
