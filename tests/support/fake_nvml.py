"""A stand-in for `pynvml`, the module of nvidia-ml-py.

It has to be a fake: NVML works only with NVIDIA's driver and a GPU, and no GPU produces on demand what is
tested (a value that a GPU does not support, a MIG slice, heat). `tests/resources/test_gpus.py` checks that
the real module has every name that is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any


class NotSupported(Exception):
    """Stands in for `NVMLError_NotSupported`."""


class FakeNvml:
    """A number of GPUs; `unsupported` names the calls that none of them supports."""

    NVMLError = NotSupported
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    nvmlClocksThrottleReasonSwPowerCap = 0x4
    nvmlClocksThrottleReasonHwSlowdown = 0x8
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, gpus: int = 1, unsupported: Iterable[str] = (), reasons: int = 0x1) -> None:
        self._answers: dict[str, Any] = {
            "nvmlInit": lambda: None,
            "nvmlSystemGetDriverVersion": lambda: "580.65",
            "nvmlDeviceGetName": lambda gpu: "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetCount": lambda: gpus,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetHandleByUUID": lambda uuid: len(uuid),
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=90 + gpu, memory=40),
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(
                used=3 << 30, total=80 << 30, free=77 << 30
            ),
            "nvmlDeviceGetPowerUsage": lambda gpu: 312_500,
            "nvmlDeviceGetTemperature": lambda gpu, sensor: 61,
            "nvmlDeviceGetClockInfo": lambda gpu, clock: 1980,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: reasons,
        }
        self._unsupported = set(unsupported)

    def __getattr__(self, name: str) -> Any:
        if name not in self._answers:
            raise AttributeError(name)
        if name not in self._unsupported:
            return self._answers[name]

        def refuse(*arguments: Any) -> Any:
            raise NotSupported("Not Supported")

        return refuse
