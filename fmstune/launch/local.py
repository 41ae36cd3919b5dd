"""`fmstune train --nproc N`: start torchrun, with fmstune's last line and exit codes.

With several machines, it is started on each of them. They find each other by torchrun's own environment
variables, as set by Kubeflow: PET_NNODES, PET_RDZV_ENDPOINT or PET_MASTER_ADDR, and so on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from pathlib import Path

from fmstune.errors import ConfigError
from fmstune.launch.failures import failure, interruption, last_reported, rendezvous_failed
from fmstune.launch.rank import LAUNCHED, SECONDS_TO_STOP, under_torchrun
from fmstune.launch.signals import forwarded, signals_for_torchrun
from fmstune.system.threads import set_threads

RENDEZVOUS = ("PET_RDZV_BACKEND", "PET_RDZV_ENDPOINT", "PET_MASTER_ADDR", "PET_MASTER_PORT")
"""Variables of torchrun that say where processes meet."""


def process_count(asked: str) -> int:
    """The number of processes for `--nproc`; `auto` is one for each GPU. Raises `ConfigError`."""
    if under_torchrun() or "LOCAL_RANK" in os.environ:
        raise ConfigError("--nproc starts torchrun itself: leave it out if torchrun starts fmstune.")
    if asked == "auto":
        set_threads()  # torch reads it at import; if there is only one process, it is this one that trains
        import torch

        return max(1, int(torch.cuda.device_count()))
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(f"--nproc {asked} is neither a number of processes nor `auto`.")
    return int(asked)


def is_multi_node() -> bool:
    """Whether torchrun's environment variables say that other machines take part."""
    return os.environ.get("PET_NNODES", "1") not in ("", "1", "1:1")


def without_nproc(arguments: list[str]) -> list[str]:
    """The command line of each process: the launcher's, without `--nproc`."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--nproc" and not argument.startswith("--nproc="):
            kept.append(argument)
        skip = not skip and argument == "--nproc"
    return kept


def launch(processes: int, arguments: list[str], *, on_cpu: bool = False) -> None:
    """Run `fmstune` with these arguments in several processes on this machine, and wait until they exit.

    Raises `RankFailed` with the cause reported by the first process that failed, and `ConfigError` if there
    are fewer GPUs than processes, unless they are not used (`on_cpu`).
    """
    os.environ[LAUNCHED] = str(os.getpid())
    set_threads(processes)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))
    os.environ["PET_SIGNALS_TO_HANDLE"] = signals_for_torchrun()
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder, forwarded(Path(folder)):
        import torch
        from torch.distributed import run as torchrun
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError

        gpus = torch.cuda.device_count()
        if 0 < gpus < processes and not on_cpu:
            raise ConfigError(
                f"--nproc {processes}: each process needs its own GPU, but there "
                f"{'is only 1' if gpus == 1 else f'are only {gpus}'}; use --nproc auto."
            )
        options = ["--nproc-per-node", str(processes), "--log-dir", folder, "--module", "fmstune"]
        logging.disable(logging.CRITICAL)  # torchrun's log of each process that ends, with a traceback
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                parsed = torchrun.parse_args(options)
            # Set after parsing: torchrun would take options that start like its own for itself.
            parsed.training_script_args = arguments
            # Older versions of torchrun have one default port, which the run beside this one has taken.
            parsed.standalone |= not (is_multi_node() or any(map(os.environ.get, RENDEZVOUS)))
            torchrun.run(parsed)
        except (SystemExit, ValueError, AssertionError) as error:
            parser_error = said.getvalue().strip().rpartition("error: ")[2]
            raise ConfigError(
                f"torchrun rejects the PET_… variables in the environment: {parser_error or error}."
            ) from None
        except ChildFailedError as error:
            raise failure(error, last_reported(folder)) from None
        except SignalException as error:
            raise interruption(error.sigval, last_reported(folder)) from None
        except RendezvousError as error:
            where = parsed.rdzv_endpoint or parsed.master_addr
            settings = "PET_NNODES and PET_RDZV_ENDPOINT, or PET_MASTER_ADDR,"
            raise rendezvous_failed(error, where, settings) from None
        finally:
            logging.disable(logging.NOTSET)
