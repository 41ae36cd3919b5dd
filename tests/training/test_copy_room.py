"""A checkpoint is copied if there is enough memory for the copy in addition to the steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fmstune.system import memory
from fmstune.system.memory import Capacity
from fmstune.training.trainers import copy_room
from fmstune.training.trainers.copy_room import CopyRoom


class Memory:
    """A machine's memory in GB, of which the program holds 2; reading the kernel's peak resets it."""

    def __init__(self, available: int) -> None:
        self.available, self.recent = available, 2

    def in_use(self) -> int:
        return 2 * 10**9

    def recent_peak(self) -> int:
        found, self.recent = self.recent, 2
        return found * 10**9

    def main_memory(self) -> Capacity:
        return Capacity(self.available * 10**9, "this machine")


def room_beside(
    monkeypatch: pytest.MonkeyPatch, available: int, estimated: int = 0
) -> tuple[CopyRoom, Memory]:
    found = Memory(available)
    monkeypatch.setattr(copy_room, "memory", found)
    work = SimpleNamespace(tokens=100) if estimated else None
    monkeypatch.setattr(copy_room, "workload", lambda trainer: work)
    monkeypatch.setattr(copy_room, "estimate", lambda work, program: SimpleNamespace(peak=estimated * 10**9))
    nothing = SimpleNamespace(parameters=list)
    args = SimpleNamespace(device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(model=nothing, ref_model=None, optimizer=None, args=args)
    return CopyRoom(trainer), found


def test_steps_that_need_more_after_a_copy_was_freed_are_counted_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room, machine = room_beside(monkeypatch, available=6)
    machine.recent = 3
    room.held_copy(0)
    assert room.obstacle(4 * 10**9) is None  # 4, plus 1 for the step, fit into 6
    machine.recent = 7
    room.held_copy(4 * 10**9)
    assert room.obstacle(4 * 10**9) is None
    machine.recent = 5  # less than the peak that included the copy
    room.held_copy(0)
    assert room.obstacle(4 * 10**9) == (
        "a copy needs 4 GB of memory, and the training steps 3 GB more; this machine has 6 GB"
    )


def test_while_batches_are_short_the_estimate_of_the_longest_one_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room, _ = room_beside(monkeypatch, available=6, estimated=5)
    room.count_batch({"input_ids": torch.ones(2, 20)})
    assert "the training steps 3 GB more" in (room.obstacle(4 * 10**9) or "")
    room.count_batch({"chosen_input_ids": torch.ones(2, 25), "rejected_input_ids": torch.ones(2, 25)})
    assert room.obstacle(4 * 10**9) is None


def test_the_peak_of_the_run_is_the_maximum_over_all_its_parts() -> None:
    memory.reset_peak()
    before = memory.recent_peak()
    large = torch.ones(50_000_000, dtype=torch.uint8)
    high = memory.recent_peak()
    del large
    assert high > before + 40_000_000
    assert memory.recent_peak() <= high
    assert memory.peak() >= high
