"""Where the memory of a training goes, measured once at its first update, next to the estimate.

Measured by the storages of tensors: the same on a CPU and on a GPU, without synchronisation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from fmstune.resources.source import MB, Figures
from fmstune.training.memory.estimate import Workload, estimate
from fmstune.training.memory.workload import workload
from fmstune.training.tuned_trainer import TunedTrainer

PARTS = ("weights", "gradients", "optimizer", "activations")


class MemoryParts:
    """Measure the first update of a training, and record `memory_weights_mb` etc. and
    `memory_weights_estimated_mb` etc. of this process.

    Activations are what the first batch's forward pass keeps for its backward pass: in the autograd graph
    on a CPU, in the allocator on a GPU; the estimate is for a batch of that size, not for the longest. With
    activation checkpointing or compilation, they are not measured on a CPU.
    """

    def __init__(self, trainer: TunedTrainer, record: Callable[[Figures], None]) -> None:
        self._trainer, self._record = trainer, record
        self._armed = False
        self._kept: int | None = None
        self._tokens: tuple[int, int, int] | None = None

    def arm(self) -> None:
        """The training starts: the next forward pass is that of its first batch."""
        self._armed = True

    @contextlib.contextmanager
    def forward(self, model: torch.nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
        """The forward pass of a batch, with its loss; the first one is measured."""
        if not self._armed or not model.training:
            yield
            return
        self._armed = False
        device = self._trainer.args.device
        self._tokens = _tokens(inputs, count=device.type == "cpu")
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            yield
            self._kept = max(0, torch.cuda.memory_allocated(device) - before)
        elif device.type != "cpu" or not self._shows_graph():
            yield
        else:
            kept: dict[int, int] = {}
            held = {_place(weight) for weight in (*model.parameters(), *model.buffers())}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                if _place(tensor) not in held:
                    kept[_place(tensor)] = _bytes(tensor)
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                yield
            self._kept = sum(kept.values())

    def _shows_graph(self) -> bool:
        """Whether the graph shows what is kept: checkpointing keeps it elsewhere, compiled code would be
        recompiled, and TRL's LM head would not know DeepSpeed's weights again."""
        args = self._trainer.args
        shows = not args.activation_checkpointing and not args.torch_compile
        return shows and not (self._trainer.is_deepspeed_enabled and self._trainer.lm_head == "tiled")

    def updated(self) -> None:
        """The first update is done, and its gradients still exist."""
        if self._tokens is None:
            return
        trainer, model = self._trainer, self._trainer.model
        parameters = list(model.parameters())
        reference = [] if trainer.ref_model is None else list(trainer.ref_model.parameters())
        # DeepSpeed's stage 3 leaves the parameters empty, and has their values in shards.
        weights = [
            *parameters,
            *(each.ds_tensor for each in (*parameters, *reference) if hasattr(each, "ds_tensor")),
        ]
        places = {_place(weight) for weight in weights}
        found = {
            "weights": _sum([*weights, *model.buffers(), *reference]),
            # Its copies of the weights as well, as DeepSpeed has them.
            "optimizer": _sum(
                each for each in _tensors([*_state(trainer.optimizer).items()]) if _place(each) not in places
            ),
        }
        # DeepSpeed keeps them elsewhere.
        if gradients := [weight.grad for weight in parameters if weight.grad is not None]:
            found["gradients"] = _sum(gradients)
        if self._kept is not None:
            found["activations"] = self._kept
        figures = {f"memory_{name}_mb": _mb(size) for name, size in found.items()}
        if (work := workload(trainer)) is not None:
            expected = estimate(_of_batch(work, self._tokens))
            each = work.sharding.sharing
            for name in found:
                figures[f"memory_{name}_estimated_mb"] = _mb(getattr(expected, name) / each)
        self._tokens = None
        self._record(figures)


def _of_batch(work: Workload, tokens: tuple[int, int, int]) -> Workload:
    """The work for a batch with these counts: tokens, tokens in the loss, and the longest row."""
    count, scored, longest = tokens
    share = count / max(1, work.tokens)
    all_scored = work.scored >= work.tokens
    counted = count if all_scored else scored if scored >= 0 else int(work.scored * share)
    return replace(work, tokens=count, scored=counted, longest=min(longest, work.longest))


def _tokens(inputs: Mapping[str, Any], *, count: bool) -> tuple[int, int, int]:
    """The tokens of a batch including padding, those in the loss (-1: not counted, since that would wait
    for a GPU), and the longest row."""
    ids, labels = inputs.get("input_ids"), inputs.get("labels")
    if not isinstance(ids, torch.Tensor):
        return 0, 0, 0
    scored = int((labels != -100).sum()) if count and isinstance(labels, torch.Tensor) else -1
    return ids.numel(), scored, ids.shape[-1]


def optimizer_tensors(optimizer: Any) -> Iterator[torch.Tensor]:
    """The state of the optimizer itself, inside its wrappers."""
    return _tensors(_state(optimizer))


def _state(optimizer: Any) -> Mapping[Any, Any]:
    """The state of each weight that the optimizer updates, or of its copy of it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    state: Mapping[Any, Any] = getattr(optimizer, "state", {})
    return state


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _sum(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of the tensors, counting shared storage once: tied weights, views of a bucket."""
    return sum({_place(tensor): _bytes(tensor) for tensor in tensors}.values())


def _place(tensor: torch.Tensor) -> int:
    return _storage(tensor).data_ptr() or id(tensor)


def _bytes(tensor: torch.Tensor) -> int:
    return int(_storage(tensor).nbytes())


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    """Its memory in this process: with FSDP, that of its shard."""
    with torch.no_grad():
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()


def _mb(size: float) -> float:
    return round(size / MB, 3)
