"""Commands in processes of their own, `fmstune` above all, without paying for their imports each time.

Most processes are forked from a warm interpreter (`tests.support.forkserver`). One whose environment has what
libraries read at their import, or other modules than this tree's, is started as a user's is, and so is each
with `fresh=True`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from fmstune.delivery.shipping.quiet import QUIET
from tests.support import sdks as of_sdks
from tests.support.once import SHARED
from tests.support.process import Process
from tests.support.surroundings import ENVIRONMENT

ROOT = Path(__file__).parents[2]
FAST = ["--set", "training.eval_strategy=no", "--set", "training.logging_steps=1"]
"""A run that logs each step and evaluates none."""

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
"""What a command imports that needs no torch."""
_TRAINER = (
    *_LIGHT, "fmstune.run.run", "fmstune.run.preflight", "fmstune.run.artifacts", "fmstune.run.data_rows",
    "fmstune.run.model_card", "fmstune.run.stream_watch", "fmstune.run.tracker_runs", "fmstune.data.changed",
    "fmstune.training.build", "fmstune.training.decided", "fmstune.training.methods.sft",
    "fmstune.training.callbacks.progress", "fmstune.training.callbacks.samples",
    "fmstune.training.callbacks.stopping", "fmstune.training.callbacks.timing",
    "peft.utils.transformers_weight_conversion",
    "fmstune.config.inspect.decided",
    "fmstune.report.ending", "fmstune.report.page", "fmstune.trackers.alone", "fmstune.trackers.hf.callback",
    "torch.distributed.run", "torch.utils.serialization", "torch.profiler._cupti_monitor", "numpy.ctypeslib",
    "transformers.models.llama.modeling_llama", "rich._emoji_codes",
)  # fmt: skip
_SDKS = (
    "aim", "tests.support.aim_database", "wandb",
    "aim.ext.transport.server", "pandas", "uvicorn.main", "uvicorn.protocols.http.httptools_impl",
    "uvicorn.loops.auto", "uvicorn.lifespan.on", "mlflow.tracking", "mlflow.server.handlers",
    "mlflow.server.fastapi_app", "mlflow.store.tracking.sqlalchemy_store",
)  # fmt: skip
"""What a server of Aim's or MLflow's imports, and a reader of their storage."""
_WORKERS = (
    "pytest", *_TRAINER, "matplotlib.pyplot", "pandas", "gguf", "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store", "aim", "tests.support.aim_database", "wandb", "comet_ml",
    "clearml", "swanlab", "tensorboard.backend.event_processing.event_accumulator",
)  # fmt: skip
"""What test modules import, but for trackio, which reads each test's variables at its import."""
_LIVES = (
    "fmstune.testing.inside", "fmstune.testing.lives", "fmstune.trackers.file_tracker",
    "tests.support.labelled", "tests.support.media", "tests.support.stored",
    "PIL.Image",
)  # fmt: skip
"""What a shipper's life imports, and what reads a storage, besides an SDK."""
_FORKS = sys.platform == "linux"
_SETS = {"workers": _WORKERS, "light": _LIGHT, "trainer": _TRAINER, "sdks": _SDKS}
_SESSION = "PYTEST_SESSION_PROCESS"
"""Names the process with which a session of several workers ends."""
_OF = "lives-"
_ALL_SETS = _SETS | {
    f"{_OF}{name}": (*modules, *of_sdks.BESIDE.get(name, ()), *_LIVES)
    for name, modules in {"": (), **of_sdks.MODULES}.items()
}
"""With those of the lives of each tracker, of which most sessions need some."""
_AT_IMPORT = re.compile(
    "PYTHON(?!PATH$)|LANG|LC_|OMP_|MKL_|KMP_|OPENBLAS|HF_|HUGGINGFACE|TRANSFORMERS|DATASETS|TOKENIZERS|TRL_|"
    "ACCELERATE|TORCH(?!ELASTIC)|PYTORCH|CUDA|XDG_|GITHUB_|NO_COLOR|FORCE_COLOR|PY_COLORS|TERMINAL_WIDTH|LD_"
)
"""Variables that Python, and libraries, read when they are started and imported."""
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false", "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # fmt: skip
"""Those that the command sets before it imports anything, unless they are set."""


Command = Union[Process, "subprocess.Popen[str]"]


class _Warm:
    """A warm interpreter, which has imported a set of modules and ends with the process that started it."""

    def __init__(self, name: str) -> None:
        shared = os.environ.get(SHARED)
        folder = Path(shared or tempfile.mkdtemp(prefix="warm-"))
        self.path, self._log = folder / name, folder / f"{name}.log"
        own = {"HOME": str(folder), "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
        quiet = QUIET if name.startswith(_OF) else {}
        self._environment = {**quiet, **(ENVIRONMENT or os.environ), **own}
        self._modules = _ALL_SETS[name]
        self._reads = of_sdks.AT_IMPORT if name.startswith(_OF) else None
        self._owner: socket.socket | None = None
        if not shared:
            self.begin()
        elif name.startswith(_OF):
            self._begin_once()

    def begin(self) -> None:
        """Start the interpreter, unless it is."""
        if self._owner:
            return
        # Its end tells the interpreter that this process has ended, which then takes the folder away.
        self._owner, theirs = socket.socketpair()
        with theirs:
            self._start(theirs.fileno())

    def _begin_once(self) -> None:
        """Start the interpreter, unless a worker has; it ends with the session, not with this worker."""
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
            numbers = (listening.fileno(), owner)
            # It leaves this process at once: tests look at its children, and some end them all.
            subprocess.run(
                [sys.executable, "-m", "tests.support.forkserver", *map(str, numbers), *self._modules],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=numbers,
                check=True,
            )

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment would import the same modules, to the same effect."""
        mine, theirs = (
            {
                name: value
                for name, value in {**_QUIET, **each}.items()
                if _AT_IMPORT.match(name) or (self._reads is not None and self._reads.match(name))
            }
            for each in (self._environment, environment)
        )
        return mine == theirs and not any(map(_has_modules, environment["PYTHONPATH"].split(os.pathsep)))

    def connect(self) -> socket.socket:
        """A connection for one request."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.path))
        except OSError:
            raise RuntimeError(f"the warm interpreter has ended: {self._log.read_text()}") from None
        return connection


_warm = functools.cache(_Warm)


def share() -> None:
    """Have this process and those that it starts, which are several workers of xdist's, share their
    interpreters: each would import the same otherwise. That of the workers is started at once."""
    if not _FORKS:
        return
    folder = tempfile.mkdtemp(prefix="warm-")
    os.environ[SHARED] = folder
    os.environ[_SESSION] = str(os.getpid())
    _warm("workers").begin()


def share_more() -> None:
    """Start the interpreters of commands, once there are workers, who would wait for them."""
    if _FORKS:
        for name in _SETS:
            _warm(name).begin()


def worker() -> str | None:
    """The command that starts a worker of xdist's in place of `python`; `None` where nothing is forked."""
    if not _FORKS:
        return None
    return shlex.join(
        [sys.executable, "-S", "-E", str(ROOT / "tests/support/worker.py"), str(_warm("workers").path)]
    )


def _has_modules(entry: str) -> bool:
    """Whether a directory of PYTHONPATH has modules that may hide others. `sitecustomize` is run for each
    process, and metadata is looked up when somebody asks for it."""
    if Path(entry) == ROOT or not Path(entry).is_dir():
        return False
    usual = ("sitecustomize.py", "__pycache__")
    return any(path.name not in usual and path.suffix != ".dist-info" for path in Path(entry).iterdir())


def settings(**more: str) -> dict[str, str]:
    """The test's environment, with this tree's packages and more variables."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def start(
    *arguments: str,
    cwd: Path,
    module: str = "fmstune",
    limits: Mapping[int, int] | None = None,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    fresh: bool = False,
    light: bool = False,
    sdks: bool = False,
    life: str | None = None,
    session: bool = False,
    closed: bool = False,
    scanner: bool = False,
    **environment: str,
) -> Command:
    """Start `python -m MODULE ARGUMENTS`, with more variables than the test's own and limits of the kernel's.

    `module` may be the path of a script. `stdout` and `stderr` are what `Popen` takes: a file's number,
    PIPE or DEVNULL. There is nothing to read. `light` is for a command that needs no trainer: the interpreter
    that it is forked from has none either. `sdks` is for one that needs those of trackers, `life` for one
    that needs a tracker's (`""`: none). With `session` it has one of its own, for `end_session`. If `closed`,
    it has no standard streams. A training samples the machine with `scanner` alone.
    """
    # Tests count events, and a sample comes whenever its time has come.
    if arguments[:1] == ("train",) and not scanner:
        arguments = ("train", "--set", "resources.interval=0", *arguments[1:])
    variables = settings(**environment)
    command = [sys.executable, *([] if os.sep in module else ["-m"]), module, *arguments]
    if not fresh and _FORKS:
        of_life = None if life is None else f"{_OF}{life}"
        warm = _warm(of_life or ("sdks" if sdks else "light" if light else "trainer"))
        if warm.serves(variables):
            request = {
                "module": module, "arguments": arguments, "cwd": str(cwd), "environment": variables,
                "limits": list((limits or {}).items()), "session": session, "closed": closed,
            }  # fmt: skip
            return _forked(warm, request, command, stdout, stderr)

    def begin() -> None:
        for kind, most in (limits or {}).items():
            resource.setrlimit(kind, (most, most))
        if closed:
            os.closerange(0, 3)

    return subprocess.Popen(
        command, cwd=cwd, env=variables, preexec_fn=begin if limits or closed else None,
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True, start_new_session=session,
    )  # fmt: skip


def _forked(
    warm: _Warm, request: Mapping[str, Any], command: Sequence[str], stdout: int, stderr: int
) -> Process:
    with contextlib.ExitStack() as theirs:
        nothing = theirs.enter_context(open(os.devnull, "r+b")).fileno()
        numbers, mine = [nothing], []
        for stream in (stdout, stderr):
            if stream == subprocess.PIPE:
                reading, writing = os.pipe()
                theirs.callback(os.close, writing)
                mine.append(open(reading, encoding="utf-8"))  # noqa: SIM115  (`Process` closes it)
            else:
                mine.append(None)
                writing = nothing if stream == subprocess.DEVNULL else stream
            numbers.append(writing)
        answer = warm.connect()
        text = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(answer, [text], numbers)
        answer.sendall(text[sent:])
        return Process(command, answer, *mine)


def fmstune(
    *arguments: str, cwd: Path, timeout: float | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; for `how` see `start`."""
    with start(*arguments, cwd=cwd, **how) as process, _killed_after_a_failure(process):
        out, err = process.communicate(timeout=timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def end_session(process: Command) -> None:
    """End a command that has a session of its own, with everything that it has started there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may not have come to begin its session
    process.wait()


@contextlib.contextmanager
def _killed_after_a_failure(process: Command) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.kill()
        raise
