"""What a run takes of NVIDIA's GPUs, by NVML (the package nvidia-ml-py, which is imported as `pynvml`)."""

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
"""Where NVIDIA's driver answers; WSL has `/dev/dxg` instead."""
_WSL = Path("/dev/dxg")
HINT = 'pip install "fmstune[gpu]"'
_SLOWED = (
    "nvmlClocksThrottleReasonSwPowerCap",
    "nvmlClocksThrottleReasonHwSlowdown",
    "nvmlClocksThrottleReasonSwThermalSlowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown",
)
"""Heat and power, which slow a GPU down; idle GPUs and clocks that somebody has set are no trouble."""


def gpu_sources() -> list[Source]:
    """What there is to be read of the GPUs that this process may use; nothing, and no import, without any.

    To be called before other threads do something: an import in a thread holds locks that a fork copies.
    """
    if not _has_driver() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        return [Source("the GPU", partial(_not_there, error))]
    return [Source("the GPU", Gpus(nvml).read), Source("torch's memory of the GPU", _allocator)]


def installed_gpus() -> tuple[list[dict[str, Any]], str | None]:
    """The GPUs that NVIDIA's driver knows, and why they could not be asked for, where there is a driver."""
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
    except Exception as error:  # of NVML: which one it is stands in the text
        return [], f"{type(error).__name__}: {error}"
    return found, None


def _has_driver() -> bool:
    return DRIVER.exists() or _WSL.exists()


def _not_there(error: ImportError) -> Figures:
    raise LookupError(f"{error}; {HINT}")


class Gpus:
    """Samples GPUs by a module such as `pynvml`.

    They are numbered as NVML and nvidia-smi do. One figure that a GPU does not support (a MIG slice has no
    utilization, a laptop no power) costs the others nothing.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handles: dict[int, Any] | None = None

    def read(self) -> Figures:
        """The figures of each GPU, as `gpu_0_percent`. Raises `NVMLError` where there is no driver."""
        if self._handles is None:
            self._nvml.nvmlInit()  # takes seconds where no process keeps the driver awake
            self._handles = dict(self._opened())
        found: Figures = {}
        for number, handle in self._handles.items():
            for name, read in self._figures():
                try:
                    found[f"gpu_{number}_{name}"] = round(float(read(handle)), 3)
                except self._nvml.NVMLError:  # mostly "Not Supported", which is no news at each sample
                    continue
        if self._handles and not found:
            raise LookupError("NVML gives no figure of any GPU")
        return found

    def _opened(self) -> Iterator[tuple[int, Any]]:
        nvml, chosen = self._nvml, os.environ.get("CUDA_VISIBLE_DEVICES")
        if chosen is None:
            for number in range(nvml.nvmlDeviceGetCount()):
                yield number, nvml.nvmlDeviceGetHandleByIndex(number)
            return
        for place, name in enumerate(part.strip() for part in chosen.split(",")):
            # CUDA numbers by speed (CUDA_DEVICE_ORDER), NVML by bus: the same for GPUs of one kind.
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
        """1 where heat or power slows the GPU down at this moment, else 0."""
        reasons = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
        return float(any(reasons & getattr(self._nvml, name) for name in _SLOWED))


def _allocator() -> Figures:
    """What torch's allocator holds on this process's GPU: `allocated` by tensors, `reserved` from the driver.

    Only where the training has begun to use CUDA: asking before would begin it, and a process that is forked
    after that cannot use it.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    # This thread's own current device is always the first; of several ranks, rank zero's is that as well.
    return {
        "gpu_torch_allocated_mb": round(torch.cuda.memory_allocated(0) / MB, 3),
        "gpu_torch_reserved_mb": round(torch.cuda.memory_reserved(0) / MB, 3),
    }
