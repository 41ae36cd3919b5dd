"""One command for everything that needs a GPU: `pytest tests/device`.

Without CUDA each case is skipped. `FMSTUNE_DEVICE_TESTS=cpu` runs those that a CPU can run, with the demo's
model, to check that the command itself works. On a GPU it takes less than eight minutes, and prints the
measurements.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.on_device import Device, Row, make_model, write_pairs, write_rows
from tests.support.once import made_once

_ROW, _DEVICE = "device table's row", "device's name"
_HEAD = ("case", "seen", "loss, first and last", "peak, GB", "estimated, GB", "seconds")


@pytest.fixture(scope="session")
def device() -> Device:
    """The GPU, or the CPU on request."""
    import torch

    gpu = torch.cuda.is_available()
    if not gpu and os.environ.get("FMSTUNE_DEVICE_TESTS") != "cpu":
        pytest.skip("there is no CUDA device; FMSTUNE_DEVICE_TESTS=cpu runs what a CPU can")

    def fill(folder: Path) -> None:
        make_model(folder / "model", large=gpu)
        write_rows(folder / "rows.jsonl", 2000 if gpu else 64, 24 if gpu else 3)
        write_pairs(folder / "pairs.jsonl", 500 if gpu else 64)

    folder = made_once("device", fill)
    return Device(
        "cuda" if gpu else "cpu",
        torch.cuda.get_device_name() if gpu else "a CPU, with the demo's model",
        folder / "model",
        folder / "rows.jsonl",
        folder / "pairs.jsonl",
        1024 if gpu else 128,
    )


@pytest.fixture
def gpu(device: Device) -> Device:
    """The GPU, for a case without a CPU counterpart."""
    if not device.is_gpu:
        pytest.skip("needs CUDA")
    return device


@pytest.fixture
def row(request: pytest.FixtureRequest, device: Device) -> Row:
    """Add a row to the table that is printed at the end."""
    # A test property also reaches the printing process from another pytest-xdist process.
    properties = request.node.user_properties
    properties.append((_DEVICE, device.name))

    def put(case: str, seen: str, losses: tuple[float, ...] = (), *numbers: float) -> None:
        fell = f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else ""
        properties.append((_ROW, (case, seen, fell, *(f"{number:.2f}" for number in numbers))))

    return put


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print at once what a case measured or why it failed: a GPU is lent for a while, and the summary may
    come too late."""
    for values in (value for name, value in report.user_properties if name == _ROW and report.when == "call"):
        print(f"\n| {' | '.join(values)} |", file=sys.__stdout__, flush=True)
    if report.failed:
        print(f"\n{report.nodeid}: {report.longreprtext[-2000:]}", file=sys.__stdout__, flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, as Markdown; write it to the file FMSTUNE_DEVICE_TABLE as well, if that is set."""
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    found = [each for report in reports if report.when == "call" for each in report.user_properties]
    rows = [value for name, value in found if name == _ROW]
    if not rows:
        return
    device = next(value for name, value in found if name == _DEVICE)
    lines = [f"Measured on {device}:", "", f"| {' | '.join(_HEAD)} |", "|---|---|---|---:|---:|---:|"]
    lines += [f"| {' | '.join([*row, *[''] * (len(_HEAD) - len(row))])} |" for row in rows]
    terminalreporter.write_line("")
    for line in lines:
        terminalreporter.write_line(line)
    if path := os.environ.get("FMSTUNE_DEVICE_TABLE"):
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
