"""Freed memory is kept within a training, and given back after it."""

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


def test_a_block_that_was_freed_is_used_again_within_and_given_back_after() -> None:
    process = psutil.Process()
    with freed_memory_kept() as kept:
        if not kept:
            pytest.skip("this C library is not glibc")
        first, second = faults_of_a_block(), faults_of_a_block()
        held = process.memory_info().rss
    assert second < first / 10
    assert held - process.memory_info().rss > BLOCK / 2


def test_what_the_user_has_set_for_the_allocator_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with freed_memory_kept() as kept:
        assert not kept
