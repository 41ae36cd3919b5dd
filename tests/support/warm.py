"""Warm interpreters, from which the tests' processes are forked, and which of them serves which process.

Each has imported a set of modules, and serves requests as `tests.support.forkserver` does. One that needs
the imports of another is forked from that one.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmstune.delivery.shipping.quiet import QUIET
from tests.support import sdks as of_sdks
from tests.support.isolation import ENVIRONMENT
from tests.support.once import SHARED

ROOT = Path(__file__).parents[2]
_SERVER = "tests.support.forkserver"
_LIGHT = (
    "fmstune.cli.app", "fmstune.cli.main", "fmstune.run.resolve", "fmstune.config.load.load",
    "fmstune.trackers.registry", "fmstune.launch.rank", "fmstune.launch.termination_log", "typer._adapters",
    "pydantic.type_adapter", "rich.console",
    "fmstune.cli.train", "fmstune.cli.trackers", "fmstune.cli.runs", "fmstune.cli.config",
    "fmstune.cli.completion",
    "fmstune.run.run", "fmstune.run.look_ahead", "fmstune.demo", "fmstune.hub", "fmstune.models.locate",
    "fmstune.data.rows.reader", "fmstune.data.files.json_lines", "fmstune.data.files.csv_files",
    "fmstune.delivery.sync", "fmstune.delivery.report", "fmstune.launch.output_keeper",
    "fmstune.launch.notices", "fmstune.report.show", "fmstune.report.listing", "fmstune.report.export",
    "fmstune.report.console", "fmstune.cli.terminal", "fmstune.report.table", "fmstune.report.fields",
    "fmstune.config.inspect.explain", "pyarrow.types", "pydantic.plugin._loader", "typer._click.decorators",
    "encodings.unicode_escape", "encodings.utf_8_sig", "ssl", "http.client", "email.parser", "shlex",
)  # fmt: skip
"""What a command without torch imports."""
_TRAINER = (
    *_LIGHT, "fmstune.run.train", "fmstune.training.methods.sft",
    "peft.utils.transformers_weight_conversion",
    "fmstune.config.inspect.decided",
    "fmstune.report.ending", "fmstune.report.page", "fmstune.trackers.standalone",
    "fmstune.trackers.hf.callback",
    "torch.distributed.run", "torch.utils.serialization", "torch.profiler._cupti_monitor", "numpy.ctypeslib",
    "transformers.models.llama.modeling_llama", "rich._emoji_codes",
)  # fmt: skip
_SDKS = (
    "aim", "tests.support.aim_database", "wandb",
    "aim.ext.transport.server", "pandas", "uvicorn.main", "uvicorn.protocols.http.httptools_impl",
    "uvicorn.loops.auto", "uvicorn.lifespan.on", "mlflow.tracking", "mlflow.server.handlers",
    "mlflow.server.fastapi_app", "mlflow.store.tracking.sqlalchemy_store",
)  # fmt: skip
"""What an Aim or MLflow server imports, and a reader of their storage."""
_WORKERS = (
    "pytest", "hypothesis", *_TRAINER, "matplotlib.pyplot", "pandas", "gguf", "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store", "aim", "tests.support.aim_database", "wandb", "comet_ml",
    "clearml", "swanlab", "tensorboard.backend.event_processing.event_accumulator",
)  # fmt: skip
"""What test modules import, except trackio, which reads each test's variables at import."""
_LIVES = (
    "fmstune.testing.inside", "fmstune.testing.fork_server", "fmstune.trackers.file_tracker",
    "fmstune.delivery.shipping.main", "fmstune.delivery.sync", "fmstune.trackers.registry",
    "tests.support.labelled", "tests.support.media", "tests.support.stored",
    "PIL.Image",
)  # fmt: skip
"""What a shipper and its life import, and what reads a storage, in addition to an SDK."""
_FORKS = sys.platform == "linux" and not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd")))
"""CUDA cannot be used in a process that is forked from one that has used it."""
_SETS = {"workers": _WORKERS, "light": _LIGHT, "trainer": _TRAINER, "sdks": _SDKS}
_SESSION = "PYTEST_SESSION_PROCESS"
"""The variable with the process with which an xdist session ends."""
_OF = "lives-"
_OF_ANY = f"{_OF}common"
_OF_EACH = {
    f"{_OF}{name}": (*modules, *of_sdks.BESIDE.get(name, ()), *_LIVES)
    for name, modules in of_sdks.MODULES.items()
}
_ALL_SETS = {**_SETS, _OF: _LIVES, _OF_ANY: (*of_sdks.COMMON, *_LIVES), **_OF_EACH}
"""Including those of the lives of each tracker, of which most sessions need some."""
_BASES = {"trainer": "light", _OF_ANY: _OF, **dict.fromkeys(("sdks", *_OF_EACH), _OF_ANY)}
"""The interpreter from which another is forked, so that its imports are not repeated."""
_AT_IMPORT = re.compile(
    "PYTHON(?!PATH$)|LANG|LC_|OMP_|MKL_|KMP_|OPENBLAS|HF_|HUGGINGFACE|TRANSFORMERS|DATASETS|TOKENIZERS|TRL_|"
    "ACCELERATE|TORCH(?!ELASTIC)|PYTORCH|CUDA|XDG_|GITHUB_|NO_COLOR|FORCE_COLOR|PY_COLORS|TERMINAL_WIDTH|LD_"
)
"""Variables that Python and libraries read at startup or import."""
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false", "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # fmt: skip
"""Variables that the command sets before it imports anything, unless they are set."""


class Warm:
    """A warm interpreter, which has imported a set of modules and ends with the process that started it."""

    def __init__(self, name: str) -> None:
        shared = os.environ.get(SHARED)
        folder = Path(shared or tempfile.mkdtemp(prefix="warm-"))
        self.path, self._log = folder / name, folder / f"{name}.log"
        own = {"HOME": str(folder), "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
        quiet = QUIET if name.startswith(_OF) else {}
        self._environment = {**quiet, **(ENVIRONMENT or os.environ), **own}
        self._modules = (*_ALL_SETS[name], *(_collected if name == "workers" else ()))
        self._base = _BASES.get(name)
        self._reads = of_sdks.AT_IMPORT if name.startswith(_OF) else None
        self._owner: socket.socket | None = None
        self._of_all = bool(shared) and name.startswith(_OF)
        if not shared or self._of_all:
            self.begin()

    def begin(self) -> None:
        """Start the interpreter, unless it is running."""
        if self._of_all:
            self._begin_once()
        elif self._owner is None:
            self._begin()

    def _begin(self) -> None:
        # When this end is closed, the interpreter knows that this process has ended, and removes the folder.
        self._owner, theirs = socket.socketpair()
        with theirs:
            self._start(theirs.fileno())

    def _begin_once(self) -> None:
        """Start the interpreter, unless another worker has; it ends with the session, not with this
        worker."""
        with open(self.path.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path.exists():
                owner = os.pidfd_open(int(os.environ[_SESSION]))
                self._start(owner)
                os.close(owner)

    def _start(self, owner: int) -> None:
        with socket.socket(socket.AF_UNIX) as listening, open(self._log, "wb") as log:
            listening.bind(str(self.path))
            listening.listen()
            files = (listening.fileno(), owner)
            # It daemonizes at once: tests inspect their child processes, and some kill them all.
            if self._base:
                self._fork_from(_warm(self._base), log.fileno(), files)
                return
            subprocess.run(
                [sys.executable, "-m", _SERVER, *map(str, files), *self._modules],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=files,
                check=True,
            )

    def _fork_from(self, base: Warm, log: int, files: tuple[int, ...]) -> None:
        base.begin()
        request = {
            "module": _SERVER, "arguments": ["3", "4", *self._modules], "cwd": str(ROOT),
            "environment": self._environment,
        }  # fmt: skip
        with open(os.devnull, "r+b") as nothing:
            files = (nothing.fileno(), nothing.fileno(), log, *files)
            with base.ask(request, files) as answer, answer.makefile("rb") as answers:
                _, code = answers.readline(), answers.readline()
        if code != b"0\n":
            raise RuntimeError(f"no interpreter was forked: {self._log.read_text()}")

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment would import the same modules, with the same effect."""
        mine, theirs = (
            {
                name: value
                for name, value in {**_QUIET, **each}.items()
                if _AT_IMPORT.match(name) or (self._reads is not None and self._reads.match(name))
            }
            for each in (self._environment, environment)
        )
        return mine == theirs and not any(map(_has_modules, environment["PYTHONPATH"].split(os.pathsep)))

    def ask(self, request: Mapping[str, Any], files: Sequence[int]) -> socket.socket:
        """Request a process with these files. The connection returns its id, and later its exit code."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.path))
        except OSError:
            raise RuntimeError(f"the warm interpreter has ended: {self._log.read_text()}") from None
        text = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(connection, [text], files)
        connection.sendall(text[sent:])
        return connection


_warm = functools.cache(Warm)
_collected: list[str] = []
"""The test files and folders of this session."""


def share(tests: Iterable[Path]) -> None:
    """Make this process and those that it starts, which are xdist's workers, share their interpreters;
    otherwise each would import the same, these test modules included. The workers wait for theirs, while
    another core prepares those of commands."""
    if not _FORKS:
        return
    _collected[:] = map(str, tests)
    folder = tempfile.mkdtemp(prefix="warm-")
    os.environ[SHARED] = folder
    os.environ[_SESSION] = str(os.getpid())
    for name in _SETS:
        _warm(name).begin()


def worker() -> str | None:
    """The command that starts an xdist worker in place of `python`; `None` where nothing is forked."""
    if not _FORKS:
        return None
    return shlex.join(
        [sys.executable, "-S", "-E", str(ROOT / "tests/support/worker.py"), str(_warm("workers").path)]
    )


def of_life(tracker: str) -> str:
    """The name of the interpreter for the lives of a tracker; `""` for none."""
    return f"{_OF}{tracker}"


def of_session(name: str) -> Warm:
    """The interpreter of this name, the same for all processes of the session."""
    return _warm(name)


def serving(name: str, environment: Mapping[str, str]) -> Warm | None:
    """The interpreter of this name, if it serves processes with this environment."""
    return _warm(name) if _FORKS and _warm(name).serves(environment) else None


def _has_modules(entry: str) -> bool:
    """Whether a directory of PYTHONPATH has modules that may hide others. `sitecustomize` runs in each
    process, and metadata is looked up on demand."""
    if Path(entry) == ROOT or not Path(entry).is_dir():
        return False
    usual = ("sitecustomize.py", "__pycache__")
    return any(path.name not in usual and path.suffix != ".dist-info" for path in Path(entry).iterdir())
