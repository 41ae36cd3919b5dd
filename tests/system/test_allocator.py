"""Freed memory is kept during a training, and returned to the system afterwards."""

from __future__ import annotations

import resource
import sys

import psutil
import pytest

from fmstune.system.allocator import freed_memory_kept

BLOCK = 100_000_000


def faults_of_a_block() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(b"x") * BLOCK
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture(autouse=True)
def _glibc_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("of glibc alone")
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


def test_a_freed_block_is_reused_during_training_and_returned_afterwards() -> None:
    process = psutil.Process()
    with freed_memory_kept() as kept:
        if not kept:
            pytest.skip("this C library is not glibc")
        first, second = faults_of_a_block(), faults_of_a_block()
        held = process.memory_info().rss
    assert second < first / 10
    assert held - process.memory_info().rss > BLOCK / 2


def test_user_settings_of_the_allocator_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with freed_memory_kept() as kept:
        assert not kept
