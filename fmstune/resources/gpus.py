"""Sample NVIDIA GPUs with NVML (the package nvidia-ml-py, imported as `pynvml`)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fmstune.resources.source import MB, Figures, Source

DRIVER = Path("/dev/nvidiactl")
"""The device of NVIDIA's driver; WSL has `/dev/dxg` instead."""
_WSL = Path("/dev/dxg")
HINT = 'pip install "fmstune[gpu]"'
_SLOWED = (
    "nvmlClocksThrottleReasonSwPowerCap",
    "nvmlClocksThrottleReasonHwSlowdown",
    "nvmlClocksThrottleReasonSwThermalSlowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown",
)
"""Throttling by heat or power; idle GPUs and clocks set by an administrator do not count."""


def gpu_sources() -> list[Source]:
    """The sources for the GPUs that this process may use; without GPUs, an empty list and no import.

    Call it before starting other threads: an import in a thread holds locks that a fork copies.
    """
    if not _has_driver() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        return [Source("the GPU", partial(_not_there, error))]
    return [Source("the GPU", Gpus(nvml).read), Source("torch's memory of the GPU", _allocator)]


def installed_gpus() -> tuple[list[dict[str, Any]], str | None]:
    """The GPUs known to NVIDIA's driver, and if there is a driver, why they could not be queried."""
    if not _has_driver():
        return [], None
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        driver = f"driver {nvml.nvmlSystemGetDriverVersion()}"
        found = []
        for number in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(number)
            memory = f"{nvml.nvmlDeviceGetMemoryInfo(gpu).total / MB:,.0f} MB"
            found.append({"name": nvml.nvmlDeviceGetName(gpu), "memory": memory, "driver": driver})
    except ImportError as error:
        return [], f"{error}; {HINT}"
    except Exception as error:  # errors of NVML, whose message tells which
        return [], f"{type(error).__name__}: {error}"
    return found, None


def _has_driver() -> bool:
    return DRIVER.exists() or _WSL.exists()


def _not_there(error: ImportError) -> Figures:
    raise LookupError(f"{error}; {HINT}")


class Gpus:
    """Samples GPUs by a module such as `pynvml`.

    Numbers them like NVML and nvidia-smi. If a GPU does not support a metric (a MIG slice has no utilization,
    a laptop no power), the others are still sampled.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handles: dict[int, Any] | None = None

    def read(self) -> Figures:
        """The metrics of each GPU, such as `gpu_0_percent`. Raises `NVMLError` if there is no driver."""
        if self._handles is None:
            self._nvml.nvmlInit()  # takes seconds unless a process keeps the driver loaded
            self._handles = dict(self._opened())
        found: Figures = {}
        for number, handle in self._handles.items():
            for name, read in self._figures():
                try:
                    found[f"gpu_{number}_{name}"] = round(float(read(handle)), 3)
                except self._nvml.NVMLError:  # usually "Not Supported", not worth a warning per sample
                    continue
        if self._handles and not found:
            raise LookupError("NVML returns no metrics for any GPU")
        return found

    def _opened(self) -> Iterator[tuple[int, Any]]:
        nvml, chosen = self._nvml, os.environ.get("CUDA_VISIBLE_DEVICES")
        if chosen is None:
            for number in range(nvml.nvmlDeviceGetCount()):
                yield number, nvml.nvmlDeviceGetHandleByIndex(number)
            return
        for place, name in enumerate(part.strip() for part in chosen.split(",")):
            # CUDA orders by speed (CUDA_DEVICE_ORDER), NVML by bus: the same for GPUs of one kind.
            if name.isdigit():
                yield int(name), nvml.nvmlDeviceGetHandleByIndex(int(name))
            else:
                yield place, nvml.nvmlDeviceGetHandleByUUID(name)

    def _figures(self) -> list[tuple[str, Callable[[Any], float]]]:
        nvml = self._nvml
        return [
            ("percent", lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
            ("memory_mb", lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / MB),
            ("power_watts", lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
            (
                "temperature_celsius",
                lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            ),
            ("clock_mhz", lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            ("throttled", self._throttled),
        ]

    def _throttled(self, gpu: Any) -> float:
        """1 if heat or power currently throttles the GPU, else 0."""
        reasons = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
        return float(any(reasons & getattr(self._nvml, name) for name in _SLOWED))


def _allocator() -> Figures:
    """The memory of torch's allocator on this process's GPU: `allocated` by tensors, `reserved` from the
    driver.

    Only after the training has initialised CUDA: querying would initialise it, and processes forked
    afterwards could not use it.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    # This thread's current device is always the first; so is rank zero's.
    return {
        "gpu_torch_allocated_mb": round(torch.cuda.memory_allocated(0) / MB, 3),
        "gpu_torch_reserved_mb": round(torch.cuda.memory_reserved(0) / MB, 3),
    }
