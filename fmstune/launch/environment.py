"""The environment of a run's process: its rank, and the verbosity of libraries."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping

from fmstune.errors import ConfigError

_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
_OF_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_OF_ACCELERATE = "ACCELERATE_MIXED_PRECISION"
"""`accelerate launch` always sets it."""
_START = "start them with --nproc or torchrun"


def is_main_process() -> bool:
    """Whether this is world rank zero, the only process that writes the journal, delivers it, and prints."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def drop_empty_size() -> None:
    """Unset a terminal size of zero, which a terminal without a size exports: rich would print no text."""
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "80").strip("0"):
            del os.environ[name]


def require_whole_launch() -> None:
    """Raise `ConfigError` if the variables of a launcher are incomplete or not numbers: left over in a shell,
    or set for another tool. torch would wait for processes that never start, or fail late."""
    numbers = {name: os.environ[name] for name in _NUMBERS if name in os.environ}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise ConfigError(f"{name} = {value!r} in the environment is not a number; unset it.")
    if int(numbers.get("WORLD_SIZE", "1")) < 2:
        _require_alone(numbers)
        return
    missing = [name for name in (*_NUMBERS, "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {numbers['WORLD_SIZE']} in the environment means that several processes train "
            f"together, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: start them "
            "with --nproc, torchrun or accelerate, or unset WORLD_SIZE."
        )


def _require_alone(numbers: Mapping[str, str]) -> None:
    """Raise `ConfigError` if a launcher wanted several processes, but each would train by itself."""
    given = os.environ
    several = next((name for name in _OF_MPI if given.get(name, "").isdecimal() and int(given[name]) > 1), "")
    if several and "WORLD_SIZE" not in given:
        raise ConfigError(
            f"{several} = {given[several]} in the environment means that MPI has started several processes, "
            f"which would not train together: {_START}, or unset {several} if each is a run of its own."
        )
    if "MASTER_ADDR" in given and _OF_ACCELERATE in given and "WORLD_SIZE" not in given:
        raise ConfigError(
            "accelerate was asked for several processes but has started one, as it does on CPUs "
            f"(MASTER_ADDR is set, WORLD_SIZE is not): {_START}, or unset MASTER_ADDR."
        )
    for name in ("RANK", "LOCAL_RANK"):
        if int(numbers.get(name, "0")) > 0:
            raise ConfigError(
                f"{name} = {numbers[name]} in the environment means that this is one of several processes, "
                f"but WORLD_SIZE = {given.get('WORLD_SIZE', '(not set)')}: {_START}, or unset {name}."
            )


def quiet_libraries() -> None:
    """Silence the libraries' own output, and turn off TRL's message to a hub at the start of each trainer,
    unless the user has set these variables. Call it before the libraries are imported, which is when they
    read them. Raises `ConfigError` if Python drops docstrings, which transformers reads."""
    if sys.flags.optimize > 1:
        raise ConfigError(
            "Python runs without docstrings (PYTHONOPTIMIZE = 2 or -OO), which transformers needs: unset it, "
            "or use 1."
        )
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Users of this tool cannot fix the libraries' use of deprecated code.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
