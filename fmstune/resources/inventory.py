"""Facts about a machine for bug reports: versions, devices, memory, disk, trackers, settings of libraries.

Imports no computing libraries, so that it is fast, and works even if an import fails; torch is queried
(whether it can use the device) only on request.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from fmstune.resources.gpus import installed_gpus
from fmstune.secrets.redaction import Redactor
from fmstune.system.disk import free
from fmstune.system.memory import format_bytes, main_memory
from fmstune.system.threads import processors
from fmstune.trackers.registry import list_trackers

_PACKAGES = (
    *(
        "fmstune",
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "accelerate",
        "tokenizers",
        "safetensors",
    ),
    *("huggingface_hub", "numpy", "pyarrow", "psutil", "typer", "rich", "aim", "wandb"),
    *("bitsandbytes", "gguf", "nvidia-ml-py", "deepspeed", "flash-attn", "liger-kernel", "mlflow", "triton"),
)
_LIBRARIES = re.compile(
    r"(FMSTUNE|HF|HUGGINGFACE|TRANSFORMERS|DATASETS|TOKENIZERS|TRL|ACCELERATE|TORCH|PYTORCH|CUDA|NVIDIA|NCCL|GLOO"
    r"|OMP|MKL|KMP|OPENBLAS|WANDB|AIM|__AIM|SLURM|XDG)_|(RANK|LOCAL_RANK|WORLD_SIZE|NO_COLOR|CI|PYTHONPATH)$"
)
"""Environment variables that affect training."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The inventory of this machine. Sizes are integers, in bytes."""

    packages: Mapping[str, str]
    python: str
    system: str
    processor: Mapping[str, Any]
    gpus: tuple[Mapping[str, Any], ...]
    gpu_problem: str | None
    torch: Mapping[str, Any]
    memory: Mapping[str, Any]
    disk: Mapping[str, int | None]
    trackers: tuple[Mapping[str, Any], ...]
    environment: Mapping[str, str]

    def lines(self) -> list[tuple[str, str]]:
        """The inventory as labels and texts."""
        cores, limit = self.processor["cores"], self.memory["limit"]
        available = format_bytes(self.memory["available"])
        found = [
            ("python", self.python),
            ("system", self.system),
            ("cpu", f"{self.processor['name']} · {cores} cores, {self.processor['usable']} for this process"),
            *(("gpu", " · ".join(str(value) for value in gpu.values())) for gpu in self.gpus),
            *([("gpu", self.gpu_problem)] if self.gpu_problem else []),
            ("torch", " · ".join(f"{name} {value}" for name, value in self.torch.items())),
            ("memory", f"{format_bytes(self.memory['total'])}, {available} available (limit: {limit})"),
            *(("disk", f"{_room(room)} in {folder}") for folder, room in self.disk.items()),
            *(("package", f"{name} {version}") for name, version in self.packages.items()),
        ]
        for tracker in self.trackers:
            words = (tracker["name"], tracker["state"], tracker["version"], tracker["remedy"])
            found.append(("tracker", " · ".join(word for word in words if word)))
        return [*found, *(("setting", f"{name}={value}") for name, value in self.environment.items())]


def inventory(redactor: Redactor, *, with_torch: bool = False) -> Inventory:
    """Take the inventory of this machine; with `with_torch`, which takes seconds, including what torch can
    use."""
    gpus, problem = installed_gpus()
    room = main_memory()
    return Inventory(
        packages=packages(),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=platform.platform(),
        processor={
            "name": _processor(),
            "cores": psutil.cpu_count() or 1,
            "usable": processors().count,
        },
        gpus=tuple(gpus),
        gpu_problem=problem,
        torch=_torch_itself() if with_torch else _torch_build(),
        memory={"total": psutil.virtual_memory().total, "available": room.available, "limit": room.limit},
        disk={str(folder): free(folder) for folder in _folders()},
        trackers=tuple(redactor.mapping(asdict(entry)) for entry in list_trackers()),
        environment={
            name: str(redactor.value(value, name))
            for name, value in sorted(os.environ.items())
            if _LIBRARIES.match(name)
        },
    )


def packages() -> dict[str, str]:
    """The installed versions of the packages that training may use."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _room(free: int | None) -> str:
    return "free space unknown" if free is None else f"{format_bytes(free)} free"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return found.group(1) if found else platform.processor() or platform.machine()


def _folders() -> list[Path]:
    """The folders that a run writes to: the current one, and the caches of models and prepared data."""
    found = [Path.cwd()]
    with contextlib.suppress(RuntimeError):  # a user without a name and HOME, as in containers
        home = Path.home()
        found.append(Path(os.environ.get("FMSTUNE_CACHE") or home / ".cache" / "fmstune"))
        found.append(Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface"))
    return list(dict.fromkeys(found))


def _torch_build() -> dict[str, Any]:
    """The build of the installed torch, read from its `version.py`, since importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {"build": "not installed"}
    found: dict[str, Any] = {}
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return {"build": "unknown: torch/version.py cannot be read"}
    for name in ("cuda", "hip", "xpu"):
        value = re.search(rf"^{name}(?:\s*:[^=]*)?\s*=\s*['\"]([^'\"]+)['\"]", text, re.M)
        if value:
            found[name] = value.group(1)
    return {"build": " ".join(f"{name} {version}" for name, version in found.items()) or "cpu"}


def _torch_itself() -> dict[str, Any]:
    try:
        torch: Any = importlib.import_module("torch")
    except Exception as error:  # a broken torch is what the report should show
        return {**_torch_build(), "import": f"failed: {type(error).__name__}: {error}"}
    found = _torch_build()
    if not torch.accelerator.is_available():
        return {**found, "device": "cpu", "threads": torch.get_num_threads()}
    found |= {
        "device": torch.accelerator.current_accelerator().type,
        "count": torch.accelerator.device_count(),
    }
    if torch.cuda.is_available():
        found |= {
            "name": torch.cuda.get_device_name(0),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found
