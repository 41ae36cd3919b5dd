"""`fmstune train --nproc N`: torchrun started for the user, with the contract's last line and exit code."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from typing import Any

from fmstune.config.errors import ConfigError

LAUNCHED = "FMSTUNE_LAUNCHED"
"""Set in the processes that are started here: they tell their error to the launcher, which prints it."""

_SECONDS_TO_STOP = 24 * 3600
"""A rank that was told to stop saves a checkpoint first, however long that takes; torchrun gives it 30 s."""


class RankFailed(Exception):
    """A process of the run has failed; `exit_code` is the contract's."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


def process_count(asked: str) -> int:
    """The number of processes that `--nproc` asks for; `auto` is one for each GPU. Raises `ConfigError`."""
    if asked == "auto":
        import torch

        return max(1, int(torch.cuda.device_count()))
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(f"--nproc {asked} is neither a number of processes nor `auto`.")
    return int(asked)


def without_nproc(arguments: list[str]) -> list[str]:
    """The command line of each process: that of the launcher without `--nproc`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--nproc" and not argument.startswith("--nproc="):
            kept.append(argument)
        skip = not skip and argument == "--nproc"
    return kept


def launch(processes: int, arguments: list[str]) -> None:
    """Run `fmstune` with these arguments in so many processes on this machine, and wait for their end.

    Raises `RankFailed` with the cause that the first one to fail has told.
    """
    os.environ[LAUNCHED] = "1"
    # As many threads as there are cores, shared among the processes: more of them wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # torchrun's log of each process that ends, with a traceback
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=_SECONDS_TO_STOP,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fmstune", *arguments)
    except ChildFailedError as error:
        raise _cause(error) from None
    except SignalException as error:
        name = error.sigval.name
        raise RankFailed(f"interrupted by {name}.", 128 + error.sigval.value) from None
    finally:
        logging.disable(logging.NOTSET)


def _cause(error: Any) -> RankFailed:
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        return RankFailed(f"the process of rank {rank} died of {failure.signal_name()}.", 1)
    data = failure.error_file_data.get("message") if failure.error_file_data else None
    message = data.get("message") if isinstance(data, dict) else None
    return RankFailed(
        message or f"the process of rank {rank} ended with {failure.exitcode}.", failure.exitcode
    )
