"""How a training is spread over processes, and how much memory each of them needs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from hypothesis import given
from hypothesis import strategies as st

from fmstune.training.memory.estimate import estimate, optimizer_size
from fmstune.training.memory.remedies import settings_that_fit
from fmstune.training.memory.sharding import ALONE, Sharding, ddp, fsdp, sharding, zero
from tests.support.workloads import SEVEN

ALL = frozenset({"weights", "gradients", "optimizer"})


def stage(number: int, **offload: str) -> dict[str, Any]:
    table = {f"offload_{part}": {"device": device} for part, device in offload.items()}
    return {"zero_optimization": {"stage": number, **table}}


@pytest.mark.parametrize(
    ("spread", "divided_by", "gathers_model", "offloaded"),
    [
        (ALONE, (1, 1, 1), False, ()),
        (ddp(8), (1, 1, 1), False, ()),
        (fsdp("full_shard", 8), (8, 8, 8), False, ()),
        (fsdp("FULL_SHARD", 8, offload=True), (8, 8, 8), False, ALL),
        (fsdp("shard_grad_op", 8), (8, 8, 8), True, ()),
        (fsdp("no_shard", 8), (1, 1, 1), False, ()),
        (fsdp("hybrid_shard", 8, of_machine=4), (4, 4, 4), False, ()),
        (fsdp("_HYBRID_SHARD_ZERO2", 8, of_machine=4), (4, 4, 4), True, ()),
        (zero({}, 8), (1, 1, 1), False, ()),
        (zero(stage(1), 8), (1, 1, 8), False, ()),
        (zero(stage(1, optimizer="cpu"), 8), (1, 1, 8), False, {"optimizer"}),
        (zero(stage(2), 8), (1, 8, 8), False, ()),
        (zero(stage(2, optimizer="cpu"), 8), (1, 8, 8), False, {"gradients", "optimizer"}),
        (zero(stage(3, optimizer="none"), 8), (8, 8, 8), False, ()),
        (zero(stage(3, optimizer="cpu", param="nvme"), 8), (8, 8, 8), False, ALL),
        (zero(stage(2, param="cpu"), 8), (1, 8, 8), False, ()),
        (zero({"zero_optimization": {"stage": 2, "offload_optimizer": None}}, 8), (1, 8, 8), False, ()),
    ],
)
def test_each_strategy_shards_what_it_declares(
    spread: Sharding, divided_by: tuple[int, int, int], gathers_model: bool, offloaded: Any
) -> None:
    assert (spread.weights, spread.gradients, spread.optimizer) == divided_by
    assert spread.gathers_model == gathers_model
    assert spread.offloaded == frozenset(offloaded)


@pytest.mark.parametrize(
    ("spread", "said"),
    [
        (ALONE, ""),
        (ddp(2, sharing=2), "2 processes, each with all of it (DDP)"),
        (ddp(4, sharing=2), "2 of 4 processes, each with all of it (DDP)"),
        (ddp(8), "one of 8 processes, with all of it (DDP)"),
        (fsdp("full_shard", 8), "one of 8 processes; FSDP divides weights, gradients and optimizer by 8"),
        (zero(stage(1), 2), "one of 2 processes; ZeRO stage 1 divides optimizer by 2"),
        (
            zero(stage(2, optimizer="cpu"), 8),
            "one of 8 processes; ZeRO stage 2 divides gradients and optimizer by 8; "
            "gradients and optimizer in main memory",
        ),
    ],
)
def test_the_sentence_names_the_number_of_processes_and_what_they_shard(spread: Sharding, said: str) -> None:
    assert spread.line() == said


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        ({"fsdp_version": 2, "reshard_after_forward": True}, fsdp("full_shard", 4)),
        ({"fsdp_version": 2, "reshard_after_forward": False}, fsdp("shard_grad_op", 4)),
        (
            {"fsdp_version": 2, "reshard_after_forward": True, "cpu_offload": True},
            fsdp("full_shard", 4, offload=True),
        ),
        ({"fsdp_version": 1, "reshard_after_forward": "hybrid_shard"}, fsdp("hybrid_shard", 4, of_machine=2)),
        (
            {"fsdp_version": 1, "reshard_after_forward": "full_shard", "cpu_offload": True},
            fsdp("full_shard", 4, offload=True),
        ),
        ({"fsdp_version": 1}, fsdp("full_shard", 4)),
    ],
)
def test_the_fsdp_plugin_is_read(
    plugin: dict[str, Any], expected: Sharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plugin is accelerate's own; the trainer around it is fake, because FSDP needs GPUs.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    state = SimpleNamespace(
        distributed_type=DistributedType.FSDP, fsdp_plugin=FullyShardedDataParallelPlugin(**plugin)
    )
    args = SimpleNamespace(device=SimpleNamespace(type="cuda"), world_size=4)
    trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(state=state))
    assert sharding(trainer) == expected


def peak(spread: Sharding) -> int:
    work = replace(SEVEN, rows=1, tokens=2048, scored=1000, checkpointing=True)
    return estimate(replace(work, sharding=spread)).peak


def test_strategies_that_shard_more_need_less() -> None:
    for spreads in (
        [fsdp("full_shard", 8, offload=True), fsdp("full_shard", 8), fsdp("shard_grad_op", 8), ddp(8)],
        [zero(stage(number), 8) for number in (3, 2, 1, 0)],
        [fsdp("full_shard", 16), fsdp("full_shard", 8), fsdp("hybrid_shard", 8, of_machine=4)],
    ):
        needs = [peak(spread) for spread in spreads]
        assert needs == sorted(needs)
        assert len(set(needs)) == len(needs)
    assert peak(fsdp("full_shard", 8)) < SEVEN.weights  # of four times that without sharding
    assert peak(ddp(8)) - peak(ALONE) == SEVEN.trained  # DDP's buckets


def test_offloaded_memory_moves_to_the_host() -> None:
    on_gpu, moved = (
        estimate(replace(SEVEN, sharding=fsdp("full_shard", 8, offload=offload))) for offload in (False, True)
    )
    assert (moved.gradients, moved.optimizer) == (0, 0)
    assert moved.offloaded == pytest.approx(4 * SEVEN.weights / 8)
    assert "in main memory 14 GB" in moved.line()
    assert on_gpu.offloaded == 0


def test_deepspeed_in_16_bits_keeps_32_bit_weights_in_the_optimizer() -> None:
    half = replace(SEVEN, weights=SEVEN.weights // 2, trained=SEVEN.trained // 2, half=True)
    spread = zero(stage(2), 8, half=True)
    assert optimizer_size(replace(half, sharding=spread)) == 3 * SEVEN.weights


@given(st.integers(1, 16), st.integers(0, 10**9))
def test_processes_that_share_memory_need_a_multiple_of_it(processes: int, program: int) -> None:
    work = replace(SEVEN, on_gpu=False, tiled_head=False)
    one = estimate(replace(work, sharding=ddp(processes)), program)
    together = estimate(replace(work, sharding=ddp(processes, sharing=processes)), program)
    assert together.peak == processes * one.peak
    assert together.program == processes * program


def test_where_each_gpu_holds_everything_sharding_is_suggested() -> None:
    work = replace(SEVEN, rows=1, tokens=2048, scored=1000, checkpointing=True, sharding=ddp(8))
    assert "training.fsdp = true (" in settings_that_fit(work, 80_000_000_000)
    assert "training.fsdp" not in settings_that_fit(replace(work, sharding=ALONE), 80_000_000_000)


@pytest.mark.parametrize(
    ("table", "half", "buffers"),
    [
        ({"stage": 0}, False, 0),
        ({"stage": 1}, False, 4 * 500_000_000),
        ({"stage": 2, "overlap_comm": True}, False, 8 * 500_000_000),
        ({"stage": 2, "reduce_bucket_size": 2e8}, False, 4 * 200_000_000),
        ({"stage": 3, "overlap_comm": True}, True, 2 * 500_000_000),
        ({"stage": 3, "reduce_bucket_size": "auto"}, True, 0),
        ({"stage": 3, "contiguous_gradients": False}, True, 0),
    ],
)
def test_the_buffers_of_deepspeed_are_counted(table: dict[str, Any], half: bool, buffers: int) -> None:
    work = replace(SEVEN, rows=1, tokens=2048, scored=1000, checkpointing=True, half=half)
    spread = zero({"zero_optimization": table}, 8, half=half)
    with_them, without = (
        estimate(replace(work, sharding=each)) for each in (spread, replace(spread, collected=0))
    )
    assert with_them.gradients - without.gradients == buffers
    assert with_them.peak >= without.peak + buffers


def test_deepspeed_updates_copies_of_the_weights() -> None:
    work = replace(SEVEN, rows=1, tokens=2048, scored=1000)
    sizes = [optimizer_size(replace(work, sharding=zero(stage(number), 1))) for number in (0, 1, 2, 3)]
    assert sizes[1] == sizes[2] == sizes[3] == sizes[0] + work.trained
