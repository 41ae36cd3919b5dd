"""Find non-finite weights, also in models that are divided among processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor


def trained_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The trained weights that this process holds, with their names: those of a divided model are its shards.

    No collective: a process that finds something in its shard must not leave the others waiting in one.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        whole = parameter.detach()
        # FSDP2. FSDP1's parameters are already views of the local shard.
        yield name, whole.to_local() if isinstance(whole, DTensor) else whole
        # At ZeRO 3 the parameter is empty outside the forward and backward passes, except for small weights,
        # which DeepSpeed keeps gathered as well.
        shard = getattr(parameter, "ds_tensor", None)
        if isinstance(shard, torch.Tensor):
            yield name, shard.detach()


def broken_weight(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of a weight with non-finite values."""
    return next((name for name, values in weights if not _is_finite(values)), None)


def broken_anywhere(model: torch.nn.Module) -> str | None:
    """The name of a trained weight with non-finite values. If the model is divided among processes, all must
    call it, and each gets the same answer."""
    found = broken_weight(trained_weights(model))
    if not (several_processes() and _is_divided(model)):
        return found
    names: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(names, found)
    return next((name for name in names if name is not None), None)


def _is_divided(model: torch.nn.Module) -> bool:
    """Whether this process holds only shards of the model."""
    fsdp = any(isinstance(part, FullyShardedDataParallel) for part in model.modules())
    return fsdp or any(isinstance(each, DTensor) or hasattr(each, "ds_tensor") for each in model.parameters())


def several_processes() -> bool:
    """Whether this training has several processes."""
    distributed = torch.distributed
    return (
        distributed.is_available() and distributed.is_initialized() and int(distributed.get_world_size()) > 1
    )


def _is_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite. The minimum and maximum propagate NaN, and take a seventeenth of the
    time of `isfinite` on each value (50 against 850 ms per GB on a CPU, before each checkpoint)."""
    if type(values) is not torch.Tensor or not values.numel() or values.is_complex():
        return bool(torch.isfinite(values).all())
    return all(bool(torch.isfinite(each)) for each in torch.aminmax(values))
