"""The environment of a run's process: its rank, and the verbosity of libraries."""

from __future__ import annotations

import os
import warnings

from fmstune.errors import ConfigError

_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")


def is_main_process() -> bool:
    """Whether this is world rank zero, the only process that writes the journal, delivers it, and prints."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def require_whole_launch() -> None:
    """Raise `ConfigError` if the variables of a launcher are incomplete or not numbers: left over in a shell,
    or set for another tool. torch would wait for processes that never start, or fail late."""
    numbers = {name: os.environ[name] for name in _NUMBERS if name in os.environ}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise ConfigError(f"{name} = {value!r} in the environment is not a number; unset it.")
    if int(numbers.get("WORLD_SIZE", "1")) < 2:
        return
    missing = [name for name in (*_NUMBERS, "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {numbers['WORLD_SIZE']} in the environment means that several processes train "
            f"together, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: start them "
            "with --nproc, torchrun or accelerate, or unset WORLD_SIZE."
        )


def quiet_libraries() -> None:
    """Silence the libraries' own output, and turn off TRL's message to a hub at the start of each trainer,
    unless the user has set these variables. Call it before the libraries are imported, which is when they
    read them."""
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
