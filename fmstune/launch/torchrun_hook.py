"""Plain `torchrun -m fmstune` and `accelerate launch -m fmstune` end as fmstune does: the last line is the
cause, and the exit code says what kind of failure it was.

torch loads `handler` in each process that uses its launcher, by the entry point group `torchrun.handlers`.
So this file imports next to nothing, does something only in a launcher that was started to run fmstune, and
whatever goes wrong here leaves the launcher as it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from fmstune.launch.failures import RankFailed

_LAUNCHERS = (
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate",
    "accelerate.commands.accelerate_cli",
    "accelerate-launch",
    "accelerate.commands.launch",
)
_FLAGS = frozenset(
    [
        *("-m", "--module", "--no-python", "--run-path", "--standalone", "--virtual-local-rank"),
        *(
            "--cpu",
            "--debug",
            "--multi-gpu",
            "--quiet",
            "-q",
            "--same-network",
            "--use-deepspeed",
            "--use-fsdp",
        ),
    ]
)
"""Options of the launchers that take no value, so that what follows may be the program."""
_OF_THE_END = ("agent.server.api", "multiprocessing.api", "multiprocessing.errors.error_handler")
"""Those of torch's elastic launcher that log how ranks have ended."""

_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def handler() -> Callable[[Any], NoReturn]:
    """What torch asks for; where this process launches fmstune, have its end told as fmstune's is."""
    with contextlib.suppress(Exception):
        command = launched(_main_program(), sys.argv[1:])
        if command is not None:
            _prepare()
            sys.excepthook = _hook(command, sys.excepthook)
    return _no_backend


def launched(launcher: str, arguments: Sequence[str]) -> Sequence[str] | None:
    """The command line of fmstune in that of a launcher; `None` when something else is launched."""
    if launcher not in _LAUNCHERS:
        return None
    before = ""
    for index, argument in enumerate(arguments):
        if (index, argument) == (0, "launch"):  # `accelerate launch`
            continue
        takes_value = before.startswith("-") and "=" not in before and before.replace("_", "-") not in _FLAGS
        if not argument.startswith("-") and not takes_value:
            return arguments[index:] if _is_fmstune(argument) else None
        before = argument
    return None


def _main_program() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def _is_fmstune(program: str) -> bool:
    return Path(program).name == "fmstune"


def _prepare() -> None:
    from fmstune.launch import signals as rank_signals
    from fmstune.launch.rank import LAUNCHED, SECONDS_TO_STOP

    rank_signals.listen()
    os.environ[LAUNCHED] = str(os.getpid())
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", rank_signals.left_to_torchrun())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))
    if "LOGLEVEL" not in os.environ:  # with which torch's launcher is asked for its log
        for name in _OF_THE_END:
            logging.getLogger(f"torch.distributed.elastic.{name}").addFilter(lambda record: False)


def _hook(command: Sequence[str], otherwise: _Hook) -> _Hook:
    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        failed = None
        with contextlib.suppress(Exception):
            failed = _failed(error, trace)
        if failed is None:
            otherwise(kind, error, trace)
            return
        from fmstune.launch import signals as rank_signals
        from fmstune.launch import termination_log as termination
        from fmstune.secrets.redaction import hide

        message = hide(str(failed))
        if failed.exit_code > 128:
            rank_signals.end_those_left()
        termination.write(message, failed.exit_code, command)
        print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(failed.exit_code)

    return tell


def _failed(error: BaseException, trace: TracebackType | None) -> RankFailed | None:
    """What an error of the launcher means; `None` for those that are its own matter."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    from fmstune.errors import ConfigError
    from fmstune.launch.failures import RankFailed, failure, interruption, last_told, not_met
    from fmstune.launch.signals import Stopped

    config = _launch_config(trace)
    causes = last_told(config.logs_specs.root_log_dir, config.run_id) if config is not None else []
    if isinstance(error, ChildFailedError):
        return failure(error, causes) if _is_fmstune(error.name) else None
    if isinstance(error, SignalException):
        return interruption(error.sigval, causes)
    if isinstance(error, RendezvousError) and config is not None:
        return not_met(error, config.rdzv_endpoint, "the options that say where")
    if isinstance(error, (ConfigError, Stopped)):
        return RankFailed(str(error), error.exit_code)
    return None


def _launch_config(trace: TracebackType | None) -> Any:
    """The launcher's configuration, of the frames that an error came through: it knows where the ranks have
    told their causes, which the error does only for ranks that had told them when it was raised."""
    from torch.distributed.launcher.api import LaunchConfig

    for frame, _ in traceback.walk_tb(trace):
        for value in frame.f_locals.values():
            if isinstance(value, LaunchConfig):
                return value
    return None


def _no_backend(parameters: Any) -> NoReturn:
    from fmstune.errors import ConfigError

    raise ConfigError(
        "fmstune is no rendezvous backend, it only tells why a run has failed: use c10d or static for "
        "--rdzv-backend."
    )
