"""Which settings would make a training fit into the available memory, each with its requirement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fmstune.system.memory import format_bytes
from fmstune.training.memory.estimate import Workload, estimate
from fmstune.training.memory.sharding import fsdp

_TOLD = 3
_ADAPTER_SHARE = 0.03
_SHORTEST = 64


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of settings, as a user would write it, and the resulting work."""

    settings: str
    work: Workload


def settings_that_fit(work: Workload, room: int, program: int = 0) -> str:
    """What to change, as a sentence or two, for a peak of at most `room` bytes."""
    fits = [
        f"{remedy.settings} ({format_bytes(peak)})"
        for remedy in _remedies(work, room, program)
        if (peak := estimate(remedy.work, program).peak) <= room
    ]
    if fits:
        return f"It would fit with {', or '.join(fits[:_TOLD])}."
    settings: list[str] = []
    for change in (_single_rows, _checkpointing, _adapter, _reference, _half):
        for remedy in change(work):
            work = remedy.work
            settings.append(remedy.settings)
        if (peak := estimate(work, program).peak) <= room:
            return f"It would fit with all of these: {'; '.join(settings)} ({format_bytes(peak)})."
    needed = format_bytes(estimate(work, program).peak)
    return f"Not even {'; '.join(settings)} would do ({needed}): take a smaller model, or a larger device."


def settings_to_try(work: Workload) -> str:
    """What reduces the memory, if it ran out despite the estimate: the mildest first."""
    changes = (_halved_batch, _checkpointing, _adapter, _reference, _shorter, _lean_optimizer)
    found = [remedy.settings for change in changes for remedy in change(work)]
    return f"Try {', or '.join(found[:_TOLD])}."


def _remedies(work: Workload, room: int, program: int) -> Iterator[Remedy]:
    smaller = work
    while smaller.rows > 1:
        smaller = next(_halved_batch(smaller)).work
        if estimate(smaller, program).peak <= room:
            break
    if smaller.rows < work.rows:
        yield Remedy(_batch_settings(smaller), smaller)
    yield from _checkpointing(work)
    yield from _reference(work)
    yield from _sharded(work)
    yield from _lean_optimizer(work)
    yield from _adapter(work)
    yield from _shorter(work)


def _halved_batch(work: Workload) -> Iterator[Remedy]:
    if work.rows > 1:
        yield _with_rows(work, -(-work.rows // 2))


def _single_rows(work: Workload) -> Iterator[Remedy]:
    if work.rows > 1:
        yield _with_rows(work, 1)


def _with_rows(work: Workload, rows: int) -> Remedy:
    share = rows / work.rows
    changed = replace(
        work,
        rows=rows,
        accumulation=max(1, round(work.accumulation * work.rows / rows)),
        tokens=max(work.longest, int(work.tokens * share)),
        scored=int(work.scored * share) + 1,
    )
    return Remedy(_batch_settings(changed), changed)


def _batch_settings(work: Workload) -> str:
    return (
        f"training.per_device_train_batch_size = {work.rows} and training.gradient_accumulation_steps = "
        f"{work.accumulation}"
    )


def _checkpointing(work: Workload) -> Iterator[Remedy]:
    if not work.checkpointing:
        yield Remedy("training.activation_checkpointing = true", replace(work, checkpointing=True))


def _reference(work: Workload) -> Iterator[Remedy]:
    if work.reference:
        yield Remedy("training.precompute_ref_log_probs = true", replace(work, reference=0, compared=False))


def _sharded(work: Workload) -> Iterator[Remedy]:
    if work.on_gpu and work.sharding.buckets:  # each GPU has a full copy
        spread = fsdp("full_shard", work.sharding.processes)
        yield Remedy("training.fsdp = true", replace(work, sharding=spread))


def _lean_optimizer(work: Workload) -> Iterator[Remedy]:
    if work.optimizer.startswith(("adamw_torch", "adamw_hf")):
        yield Remedy('training.optim = "adafactor"', replace(work, optimizer="adafactor"))


def _adapter(work: Workload) -> Iterator[Remedy]:
    if work.trained > work.weights // 2:
        trained = int(work.weights * _ADAPTER_SHARE)
        changed = replace(
            work,
            weights=work.weights + trained,
            trained=trained,
            largest_trained=trained // 8,
            reference=0,  # the reference is the model without the adapter
        )
        yield Remedy("--lora", changed)


def _shorter(work: Workload) -> Iterator[Remedy]:
    if work.longest >= 2 * _SHORTEST:
        changed = replace(work, longest=work.longest // 2, tokens=work.tokens // 2, scored=work.scored // 2)
        yield Remedy(f"training.max_length = {changed.longest}", changed)


def _half(work: Workload) -> Iterator[Remedy]:
    if not work.half and work.trained <= work.weights // 2:
        changed = replace(work, weights=work.weights // 2, half=True, autocast=False)
        yield Remedy('model.dtype = "bfloat16"', changed)
