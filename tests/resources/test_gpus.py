"""GPUs are sampled metric by metric; NVML is a stand-in (`tests.support.fake_nvml` explains why)."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.resources import gpus
from fmstune.resources.gpus import Gpus, gpu_sources
from fmstune.resources.source import Sources
from tests.support.fake_nvml import FakeNvml

OF = {
    "nvmlDeviceGetUtilizationRates": "percent",
    "nvmlDeviceGetMemoryInfo": "memory_mb",
    "nvmlDeviceGetPowerUsage": "power_watts",
    "nvmlDeviceGetTemperature": "temperature_celsius",
    "nvmlDeviceGetClockInfo": "clock_mhz",
    "nvmlDeviceGetCurrentClocksThrottleReasons": "throttled",
}
"""The value that each call returns."""


def read(nvml: Any) -> dict[str, float]:
    return Gpus(nvml).read()


def test_each_gpu_has_its_metrics() -> None:
    assert read(FakeNvml(gpus=2)) == {
        "gpu_0_percent": 90, "gpu_0_memory_mb": 3221.225, "gpu_0_power_watts": 312.5,
        "gpu_0_temperature_celsius": 61, "gpu_0_clock_mhz": 1980, "gpu_0_throttled": 0,
        "gpu_1_percent": 91, "gpu_1_memory_mb": 3221.225, "gpu_1_power_watts": 312.5,
        "gpu_1_temperature_celsius": 61, "gpu_1_clock_mhz": 1980, "gpu_1_throttled": 0,
    }  # fmt: skip


@given(st.sets(st.sampled_from(sorted(OF)), max_size=len(OF) - 1))
def test_an_unsupported_metric_does_not_affect_the_others(unsupported: set[str]) -> None:
    missing = {f"gpu_0_{OF[call]}" for call in unsupported}
    assert set(read(FakeNvml(unsupported=unsupported))) == set(read(FakeNvml())) - missing


def test_gpus_without_any_metric_are_reported_once() -> None:
    said: list[str] = []
    sources = Sources([gpus.Source("the GPU", Gpus(FakeNvml(unsupported=OF)).read)], said.append)
    assert [sources.read(), sources.read()] == [{}, {}]
    assert len(said) == 1
    assert "the GPU cannot be read" in said[0]


@pytest.mark.parametrize(("reasons", "throttled"), [(0x1, 0), (0x2, 0), (0x4, 1), (0x48, 1), (0x80, 1)])
def test_heat_and_power_count_as_throttling_and_idling_does_not(reasons: int, throttled: int) -> None:
    assert read(FakeNvml(reasons=reasons))["gpu_0_throttled"] == throttled


@pytest.mark.parametrize(
    ("visible", "numbers"), [("1", {1}), ("2, 0", {0, 2}), ("GPU-0a,GPU-0b", {0, 1}), (None, {0, 1, 2, 3})]
)
def test_only_the_gpus_visible_to_the_run_are_sampled(
    visible: str | None, numbers: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = {int(name.split("_")[1]) for name in read(FakeNvml(gpus=4))}
    assert found == numbers


def test_nothing_is_imported_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "none")
    monkeypatch.setattr(gpus, "_WSL", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it would raise
    assert gpu_sources() == []


def test_a_missing_package_is_reported_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "DRIVER", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    said: list[str] = []
    assert Sources(gpu_sources(), said.append).read() == {}
    assert [gpus.HINT in text for text in said] == [True]


def test_a_driver_that_does_not_respond_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pynvml", reason="the real module, of the extra `gpu`")
    if gpus.DRIVER.exists():
        pytest.skip("there is a driver here, which answers")
    monkeypatch.setattr(gpus, "DRIVER", tmp_path)
    said: list[str] = []
    assert Sources(gpu_sources(), said.append).read() == {}
    assert ["NVML" in text for text in said] == [True]


def test_the_real_module_has_every_name_that_is_used() -> None:
    real = pytest.importorskip("pynvml", reason="the real module, of the extra `gpu`")
    used = set(re.findall(r"\b(nvml\w+|NVML_?\w+)\b", Path(gpus.__file__).read_text())) - {"nvml", "NVML"}
    assert len(used) > 12
    assert [name for name in sorted(used) if not hasattr(real, name)] == []
    assert importlib.import_module("pynvml").__name__ == "pynvml"
