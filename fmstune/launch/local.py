"""`fmstune train --nproc N`: torchrun started for the user, with the contract's last line and exit code.

On several machines it is started on each; where they meet is in torchrun's own environment variables,
as Kubeflow sets them: PET_NNODES, PET_RDZV_ENDPOINT or PET_MASTER_ADDR, and so on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile

from fmstune.errors import ConfigError
from fmstune.launch.failures import failure, interruption, last_reported, not_met
from fmstune.launch.rank import LAUNCHED, SECONDS_TO_STOP, under_torchrun
from fmstune.launch.signals import left_to_torchrun, passed_on
from fmstune.system.threads import settle


def process_count(asked: str) -> int:
    """The number of processes that `--nproc` asks for; `auto` is one for each GPU. Raises `ConfigError`."""
    if under_torchrun() or "LOCAL_RANK" in os.environ:
        raise ConfigError("--nproc starts torchrun itself: leave it out where torchrun starts fmstune.")
    if asked == "auto":
        settle()  # torch reads it when it is imported; where there is one process, this one trains
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

    Raises `RankFailed` with the cause that the first one to fail reported, and `ConfigError` when there are
    too few GPUs for so many processes, unless they are not used (`on_cpu`).
    """
    os.environ[LAUNCHED] = str(os.getpid())
    settle(processes)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))
    os.environ["PET_SIGNALS_TO_HANDLE"] = left_to_torchrun()
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder, passed_on():
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
            raise failure(error, last_reported(folder)) from None
        except SignalException as error:
            raise interruption(error.sigval, last_reported(folder)) from None
        except RendezvousError as error:
            where = parsed.rdzv_endpoint or parsed.master_addr
            settings = "PET_NNODES and PET_RDZV_ENDPOINT, or PET_MASTER_ADDR,"
            raise not_met(error, where, settings) from None
        finally:
            logging.disable(logging.NOTSET)
