"""System metrics match what the machine does."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.resources.machine import Machine
from fmstune.resources.source import Source, Sources

FIRST = {
    "memory_percent", "memory_available_mb", "process_memory_mb", "disk_free_mb", "disk_read_mb",
    "disk_written_mb", "network_sent_mb", "network_received_mb", "process_open_files",
}  # fmt: skip
"""The metrics of the first sample; later ones also have the CPU utilization."""


def no_word(text: str) -> None:
    raise AssertionError(text)


def test_a_sample_has_these_metrics_and_later_ones_the_cpu_utilization(tmp_path: Path) -> None:
    machine = Sources(Machine(tmp_path).sources(), no_word)
    first = machine.read()
    time.sleep(0.12)
    assert set(first) == FIRST
    assert set(machine.read()) == FIRST | {"cpu_percent", "process_cpu_percent"}


def test_the_cpu_time_of_a_child_counts_while_it_runs_and_after_it_has_ended(tmp_path: Path) -> None:
    machine = Sources(Machine(tmp_path).sources(), no_word)
    machine.read()
    began = time.monotonic()
    busy = "import sys, time\nwhile time.process_time() < 0.4: pass\nprint(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        share, elapsed = machine.read()["process_cpu_percent"], time.monotonic() - began
        assert share / 100 * elapsed > 0.3
        child.communicate(b"")
    time.sleep(0.12)
    # Its seconds now belong to the parent, and are neither counted twice nor subtracted.
    assert machine.read()["process_cpu_percent"] < 100 * os.cpu_count()  # type: ignore[operator]


def test_open_files_and_memory_are_those_of_this_process(tmp_path: Path) -> None:
    machine = Sources(Machine(tmp_path).sources(), no_word)
    before = machine.read()
    files = [open(os.devnull) for _ in range(7)]  # noqa: SIM115
    with mmap.mmap(-1, 64 << 20) as held:  # fresh pages; malloc could reuse freed ones
        held.write(b"x" * len(held))
        after = machine.read()
        taken = len(held)
    for file in files:
        file.close()
    assert after["process_open_files"] - before["process_open_files"] == 7
    assert after["process_memory_mb"] - before["process_memory_mb"] > 0.9 * taken / 1e6


def test_loopback_traffic_is_not_counted_as_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 1_000_000

    def counters(**how: Any) -> dict[str, Any]:
        return {
            "lo": SimpleNamespace(bytes_sent=99 * sent, bytes_recv=99 * sent),
            "eth0": SimpleNamespace(bytes_sent=sent, bytes_recv=3 * sent),
            "ib0": SimpleNamespace(bytes_sent=sent, bytes_recv=0),
        }

    monkeypatch.setattr(psutil, "net_io_counters", counters)  # tests cannot load a real network
    machine = Sources(Machine(tmp_path).sources(), no_word)
    machine.read()
    sent *= 2
    found = machine.read()
    assert (found["network_sent_mb"], found["network_received_mb"]) == (2.0, 3.0)


ERRORS = [
    PermissionError(13, "Permission denied"),
    psutil.AccessDenied(1),
    NotImplementedError(),
    KeyError("x"),
]


@given(st.lists(st.sampled_from([None, *range(len(ERRORS))]), min_size=1, max_size=6))
def test_unreadable_metrics_are_reported_once_and_the_rest_is_recorded(failing: list[int | None]) -> None:
    def reading(number: int, error: int | None) -> Source:
        def read() -> dict[str, float]:
            if error is not None:
                raise ERRORS[error]
            return {f"figure_{number}": float(number)}

        return Source(f"source {number}", read)

    said: list[str] = []
    sources = Sources([reading(number, error) for number, error in enumerate(failing)], said.append)
    for _ in range(3):
        assert set(sources.read()) == {f"figure_{n}" for n, error in enumerate(failing) if error is None}
    assert [text.split(" cannot")[0] for text in said] == [
        f"resources: source {n}" for n, error in enumerate(failing) if error is not None
    ]


def test_sampling_takes_no_psutil_lock_that_could_block_a_forked_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = sys.modules["psutil._common"]
    monkeypatch.setattr(common, "_wn", None)  # it holds the lock
    monkeypatch.setattr(common, "wrap_numbers", no_word)
    Sources(Machine(tmp_path).sources(), no_word).read()
