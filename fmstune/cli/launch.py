"""`fmstune train --nproc N`: torchrun started for the user, with the contract's last line and exit code.

On several machines it is started on each; where they meet is told in torchrun's own environment variables,
as Kubeflow sets them: PET_NNODES, PET_RDZV_ENDPOINT or PET_MASTER_ADDR, and so on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from fmstune.cli.ranks import LAUNCHED, Cause, told, under_torchrun
from fmstune.config.errors import ConfigError

_SECONDS_TO_STOP = 24 * 3600
"""A rank that was told to stop saves a checkpoint first, however long that takes; torchrun gives it 30 s."""
_SECONDS_TO_LEAVE = 60
"""What processes have that are left when torchrun is done: their trackers get their time."""


class RankFailed(Exception):
    """A process of the run has failed; `exit_code` is the contract's."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class _Stopped(BaseException):
    """A signal before there are processes to be told. Not an `Exception`: torch catches those."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(f"interrupted by {signal.Signals(signum).name}.")


def process_count(asked: str) -> int:
    """The number of processes that `--nproc` asks for; `auto` is one for each GPU. Raises `ConfigError`."""
    if under_torchrun() or "LOCAL_RANK" in os.environ:
        raise ConfigError("--nproc starts torchrun itself: leave it out where torchrun starts fmstune.")
    if asked == "auto":
        import torch

        return max(1, int(torch.cuda.device_count()))
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(f"--nproc {asked} is neither a number of processes nor `auto`.")
    return int(asked)


def several_machines() -> bool:
    """Whether the environment says, as torchrun reads it, that other machines take part."""
    return os.environ.get("PET_NNODES", "1") not in ("", "1", "1:1")


def without_nproc(arguments: list[str]) -> list[str]:
    """The command line of each process: that of the launcher without `--nproc`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--nproc" and not argument.startswith("--nproc="):
            kept.append(argument)
        skip = not skip and argument == "--nproc"
    return kept


def launch(processes: int, arguments: list[str], *, on_cpu: bool = False) -> None:
    """Run `fmstune` with these arguments in so many processes on this machine, and wait for their end.

    Raises `RankFailed` with the cause that the first one to fail has told, and `ConfigError` when there are
    too few GPUs for so many processes, unless they are not used (`on_cpu`).
    """
    os.environ[LAUNCHED] = str(os.getpid())
    # As many threads as there are cores, shared among the processes: more of them wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SECONDS_TO_STOP))
    # The others are handled here. After `nohup` the end of the terminal is nobody's concern.
    hang_up = "" if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else "SIGHUP,"
    os.environ["PET_SIGNALS_TO_HANDLE"] = f"{hang_up}SIGQUIT"
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder, _signals():
        import torch
        from torch.distributed import run as torchrun
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError

        gpus = torch.cuda.device_count()
        if 0 < gpus < processes and not on_cpu:
            raise ConfigError(
                f"--nproc {processes}: each process needs a GPU of its own, and there "
                f"{'is 1' if gpus == 1 else f'are {gpus}'}; use --nproc auto."
            )
        options = ["--nproc-per-node", str(processes), "--log-dir", folder, "--module", "fmstune"]
        logging.disable(logging.CRITICAL)  # torchrun's log of each process that ends, with a traceback
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                parsed = torchrun.parse_args(options)
            parsed.training_script_args = arguments  # parsed, an option that begins like one of its own is it
            torchrun.run(parsed)
        except (SystemExit, ValueError, AssertionError) as error:
            told_by_argparse = said.getvalue().strip().rpartition("error: ")[2]
            raise ConfigError(
                f"torchrun refuses its variables PET_… in the environment: {told_by_argparse or error}."
            ) from None
        except ChildFailedError as error:
            raise _failure(error, _told(folder)) from None
        except SignalException as error:
            raise _interruption(error.sigval, _told(folder)) from None
        except RendezvousError as error:
            where = parsed.rdzv_endpoint or parsed.master_addr
            raise RankFailed(
                f"the machines of this run did not meet at {where} ({type(error).__name__}): PET_NNODES and "
                "PET_RDZV_ENDPOINT, or PET_MASTER_ADDR, have to be the same on all of them.",
                1,
            ) from None
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the ranks: the first through torchrun, which then waits for their end.

    The second SIGINT goes to them at once, who know what it means; the third kills them. Before there are
    ranks a signal ends this process, as the first process of a container has no default for it.
    """
    came = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        ranks = psutil.Process().children()
        if not ranks:
            raise _Stopped(signum)
        if came == 1:
            from torch.distributed.elastic.multiprocessing.api import SignalException

            raise SignalException(f"got {signum}", sigval=signal.Signals(signum))
        _send(signal.SIGKILL if came > 2 and signum == signal.SIGINT else signum, ranks)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        # What was started while a signal came is not yet known to torchrun.
        left = psutil.Process().children()
        _send(signal.SIGTERM, left)
        _send(signal.SIGKILL, psutil.wait_procs(left, timeout=_SECONDS_TO_LEAVE)[1])
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _send(signum: int, processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def _told(folder: str) -> list[Cause]:
    """What the ranks have told in their last attempt; torchrun may have been set to start them again."""
    attempts = sorted(Path(folder).glob("*/attempt_*"), key=lambda path: path.stat().st_mtime)
    return told(attempts[-1]) if attempts else []


def _failure(error: Any, causes: list[Cause]) -> RankFailed:
    """The cause of a failure: what the first rank has told, or that a rank was killed before."""
    for rank, failure in error.failures.items():
        # torchrun itself ends the other ranks with SIGTERM once one has failed.
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        # In whole seconds, and of when it was noticed: the others may have missed it before.
        if killed and (not causes or failure.timestamp - 1 <= causes[0].time):
            return RankFailed(_killed(rank, failure), 1)
    if causes:
        return RankFailed(causes[0].message, causes[0].exit_code)
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        return RankFailed(_killed(rank, failure), 1)
    return RankFailed(f"the process of rank {rank} ended with {failure.exitcode}.", failure.exitcode)


def _killed(rank: int, failure: Any) -> str:
    name = failure.signal_name()
    memory = " The kernel does that when memory runs out." if name == "SIGKILL" else ""
    return f"the process of rank {rank} was ended by {name}.{memory}"


def _interruption(signum: signal.Signals, causes: list[Cause]) -> RankFailed:
    """That the run was interrupted, unless a rank has failed at it: its checkpoint could not be saved."""
    for cause in causes:
        if cause.foreseen and cause.exit_code < 128:
            return RankFailed(cause.message, cause.exit_code)
    return RankFailed(f"interrupted by {signum.name}.", 128 + signum.value)
