"""Restore the process's state after a run, which is a guest in the user's program."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fmstune.launch.background import background
from fmstune.launch.environment import quiet_libraries
from fmstune.transformers_compat import accelerators_kept

_FRESH_SEED = 67280421310721
"""`torch.initial_seed()` of a new process."""


@dataclass(frozen=True)
class _ReadOnce:
    """A setting that a library reads from the environment at import, and stores in its module."""

    variable: str
    module: str
    attribute: str
    in_a_run: Any
    usually: Any


_SETTINGS = (
    _ReadOnce(
        "HF_HUB_DISABLE_TELEMETRY", "huggingface_hub.constants", "HF_HUB_DISABLE_TELEMETRY", True, False
    ),
    _ReadOnce("HF_HUB_DISABLE_PROGRESS_BARS", "transformers.utils.logging", "_tqdm_active", False, True),
)


_LIBRARIES = re.compile(
    "(ACCELERATE|DEEPSPEED|FSDP|PYTORCH|TORCHINDUCTOR|TRITON|XLA)_|HF_(HUB|DATASETS)_DISABLE_|HF_HUB_OFFLINE$"
    "|TRANSFORMERS_VERBOSITY$|TOKENIZERS_PARALLELISM$|TORCH_CPP_LOG_LEVEL$|KINETO_LOG_LEVEL$|TQDM_DISABLE$"
    "|VLLM_LOGGING_LEVEL$"
    "|(CUDA|ASCEND)_LAUNCH_BLOCKING$|CUBLAS_WORKSPACE_CONFIG$|(HCCL|FLASH_ATTENTION)_DETERMINISTIC$"
    "|(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|OMP_(NUM_THREADS|WAIT_POLICY)$|GOMP_SPINCOUNT$"
)
"""The environment variables by which fmstune, transformers, accelerate and TRL pass on their settings. Any
other change during a run comes from the user's callbacks or functions."""


@contextlib.contextmanager
def quiet_for_a_run() -> Iterator[None]:
    """Silence the libraries within the block (see `quiet_libraries`), including those already imported.

    Afterwards, restores the environment, the warning filters, the random states and the libraries' settings.
    Environment variables set by user code stay. Settings of a library that was first imported within the
    block become those after its import."""
    environment, filters = dict(os.environ), list(warnings.filters)
    put_back = [
        _random_numbers(), _kernels(), accelerators_kept(), *map(_setting, _SETTINGS), _verbosity(),
        background(),
    ]  # fmt: skip
    quiet_libraries()
    ours = [each for each in warnings.filters if each not in filters]
    try:
        yield
    finally:
        for name in filter(_LIBRARIES.match, {*os.environ, *environment}):
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]
        # Keep the filters that libraries added for their own messages at import.
        theirs = [each for each in warnings.filters if each not in ours and each not in filters]
        warnings.resetwarnings()
        listed: Any = warnings.filters
        listed.extend([*theirs, *filters])
        for each in put_back:
            each()


def _setting(setting: _ReadOnce) -> Callable[[], None]:
    module = sys.modules.get(setting.module)
    before = setting.usually if module is None else getattr(module, setting.attribute)
    if setting.variable in os.environ:  # set by the user
        return lambda: None
    if module is not None:
        setattr(module, setting.attribute, setting.in_a_run)

    def put_back() -> None:
        if setting.module in sys.modules:
            setattr(sys.modules[setting.module], setting.attribute, before)

    return put_back


def _verbosity() -> Callable[[], None]:
    """Restore the log level of transformers, which sets it at import; a Trainer sets it from its
    arguments."""
    logger, there = logging.getLogger("transformers"), "transformers" in sys.modules
    asked = "TRANSFORMERS_VERBOSITY" in os.environ
    level = logger.level if there else logging.WARNING
    return lambda: None if asked and not there else logger.setLevel(level)


def _kernels() -> Callable[[], None]:
    """Restore what `training.full_determinism` sets in torch, and torch's choice of attention kernels."""
    torch = sys.modules.get("torch")
    modes, convolutions, planned = (False, False), (False, False), True
    if torch is not None:
        modes = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        convolutions = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
        planned = torch.backends.cuda.cudnn_sdp_enabled()

    def put_back() -> None:
        if "torch" in sys.modules:
            library = sys.modules["torch"]
            now = (
                library.are_deterministic_algorithms_enabled(),
                library.is_deterministic_algorithms_warn_only_enabled(),
            )
            if now != modes:  # setting it imports the compiler, for two seconds
                library.use_deterministic_algorithms(modes[0], warn_only=modes[1])
            library.backends.cudnn.deterministic, library.backends.cudnn.benchmark = convolutions
            library.backends.cuda.enable_cudnn_sdp(planned)

    return put_back


def _random_numbers() -> Callable[[], None]:
    python = random.getstate()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    arrays = numpy.random.get_state() if numpy is not None else None
    tensors = torch.get_rng_state() if torch is not None else None
    gpus = torch.cuda.get_rng_state_all() if torch is not None and torch.cuda.is_initialized() else None

    def put_back() -> None:
        random.setstate(python)
        if "numpy" in sys.modules:
            generator = sys.modules["numpy"].random
            generator.seed() if arrays is None else generator.set_state(arrays)
        if "torch" in sys.modules:
            library = sys.modules["torch"]
            if tensors is None:
                library.default_generator.manual_seed(_FRESH_SEED)
            else:
                library.set_rng_state(tensors)
            if gpus is not None:
                library.cuda.set_rng_state_all(gpus)

    return put_back
