"""Forks the shippers that tests start in their own process from a warm interpreter with their imports.

Started as in a run, each would import its tracker's SDK, for half a second to a second and a half of CPU, and
a delivery test starts three or four. Nothing else differs: each is a process with a supervisor, which is a
child of the test's process as it is of the trainer's, and has the files, the environment and the session that
`Popen` gives it.

The warm interpreter is also a child of the test's process. It forks twice and the process in between exits,
so that the forked process is adopted by the nearest subreaper, which at that moment is the test's process.

Shippers of trackers that have an SDK are forked from the interpreters of lives (`tests.support.warm`), which
all workers of a session share; each worker would otherwise spend ten seconds on imports. The parent of such a
supervisor ends with the test's process, and tells it how the supervisor ended (`tests.support.parents`).

Trainings in subprocesses start their shippers as users' do, and so does a test with modules of its own that
might hide an SDK.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fmstune.delivery.shipping import process
from fmstune.delivery.shipping.quiet import QUIET
from tests.support import sdks
from tests.support.aim_servers import provide_database
from tests.support.forkserver import HIGH, become, received, run_to_end, warm_up
from tests.support.isolation import ENVIRONMENT
from tests.support.parents import Adopted
from tests.support.warm import Warm, of_life, of_session

_ROOT = Path(__file__).parents[2]
_SUPERVISOR = "fmstune.delivery.shipping.supervisor"
_PLAIN = (
    "fmstune.delivery.shipping.main", "fmstune.delivery.sync", "fmstune.trackers.registry",
    "fmstune.trackers.file_tracker", "tests.sample_trackers",
)  # fmt: skip
_AT_IMPORT = re.compile("PYTHON(?!PATH$)|LANG|LC_|LD_|XDG_")
"""Variables that Python reads at startup, and libraries at import."""
_SUBREAPER = 36
_SERVER = "tests.support.warm_shippers"


class _Warm:
    """A warm interpreter, which ends with the process that started it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._ended = False
        self.environment = {**ENVIRONMENT, **QUIET, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
        self._mine, theirs = socket.socketpair()
        number = theirs.fileno()
        with theirs, open(os.devnull, "r+b") as nothing:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _SERVER, str(number), *_PLAIN],
                cwd=_ROOT, env=self.environment, pass_fds=(number,), start_new_session=True,
                stdin=nothing, stdout=nothing, stderr=nothing,
            )  # fmt: skip
        self.pid = self._process.pid

    def has_ended(self) -> bool:
        """Whether something has ended it, as tests do that end all their children."""
        if not self._ended:
            try:
                self._ended = os.waitpid(self.pid, os.WNOHANG) != (0, 0)
            except ChildProcessError:  # such a test has also waited for it
                self._ended = True
        return self._ended

    def fork(self, request: Mapping[str, Any], files: list[int]) -> int:
        """The process of a request, which is a child of this one."""
        with self._lock:
            _prctl(1)
            try:
                text = json.dumps(request).encode() + b"\n"
                sent = socket.send_fds(self._mine, [text], files)
                self._mine.sendall(text[sent:])
                answer = b""
                while not answer.endswith(b"\n"):
                    if not (part := self._mine.recv(64)):
                        raise RuntimeError("the warm interpreter of shippers has ended")
                    answer += part
                return int(answer)
            finally:
                _prctl(0)


@dataclass
class Around:
    """What the processes of one tracker have of their own: variables and kernel limits. `pid` is that of the
    newest one."""

    environment: Mapping[str, str] = field(default_factory=dict)
    limits: list[tuple[int, int]] = field(default_factory=list)
    pid: int | None = None


around: defaultdict[str, Around] = defaultdict(Around)
"""By tracker name."""


class _Shipper(Adopted):
    """What `Popen` starts, or a fork if it is a supervisor whose imports are warm."""

    def _execute_child(self, *all: Any) -> None:
        command, passed, cwd, session = all[0], all[4], all[5], all[21]
        own = around[command[3]]
        environment = {**all[6], **own.environment}
        warm = _warm_for(command, environment, cwd)
        if warm is None or any(number >= HIGH for number in passed):
            super()._execute_child(*all[:6], environment, *all[7:])  # type: ignore[misc]
            own.pid = self.pid
            for kind, most in own.limits:
                resource.prlimit(self.pid, kind, (most, most))
            return
        request = {
            "module": _SUPERVISOR, "arguments": command[3:], "cwd": str(cwd or Path.cwd()),
            "environment": environment, "session": session, "limits": own.limits, "passed": passed,
        }  # fmt: skip
        files = [all[10], all[13], all[15], *passed]
        if isinstance(warm, _Warm):
            self.pid = warm.fork(request, files)
            self._child_created = True
        else:
            self.adopt(warm, request, files)
        own.pid = self.pid
        self._close_pipe_fds(*all[10:16])  # type: ignore[attr-defined]


def _warm_for(command: list[str], environment: Mapping[str, str], cwd: str | None) -> _Warm | Warm | None:
    """The interpreter that has the imports of a process with this environment, if there is one."""
    if sys.platform != "linux" or command[:3] != [sys.executable, "-m", _SUPERVISOR]:
        return None
    if environment.get("PYTHONPATH", str(_ROOT)) != str(_ROOT):
        return None
    kind = command[3].partition("-")[0]  # the second `wandb` of a run is `wandb-2`
    with _starting:
        plain = _running()
        if plain.owner != os.getpid() or not _alike(plain.environment, environment):
            return None
        if kind not in sdks.MODULES:
            return None if _hidden(_PLAIN, cwd) else plain
        if _hidden((*_PLAIN, *sdks.MODULES[kind]), cwd):
            return None
        if kind == "aim":
            provide_database()
        return of_session(of_life(kind))


def _alike(mine: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Whether both agree on the variables that are read at import."""
    read = [
        {name: value for name, value in each.items() if _AT_IMPORT.match(name) or sdks.AT_IMPORT.match(name)}
        for each in (mine, theirs)
    ]
    return read[0] == read[1]


def _hidden(modules: tuple[str, ...], cwd: str | None) -> bool:
    """Whether the search path of this process has other modules of these names."""
    names = {name.partition(".")[0] for name in modules}
    searched = [each for each in (*sys.path, cwd or "") if "site-packages" not in each]
    places = {Path(each).resolve() for each in searched} - {_ROOT}
    return any(_hides(place, names) for place in places)


def _hides(folder: Path, names: set[str]) -> bool:
    if not folder.is_dir() or folder.joinpath("os.py").exists():  # the standard library
        return False
    found = [path for path in folder.iterdir() if path.name.partition(".")[0] in names]
    return any(path.suffix == ".py" or path.joinpath("__init__.py").exists() for path in found)


def _running() -> _Warm:
    global _plain
    if _plain is None or (_plain.owner == os.getpid() and _plain.has_ended()):
        _plain = _Warm()  # in a forked process `_plain` is the parent's, and would fork children for it
    return _plain


_plain: _Warm | None = None
_starting = threading.Lock()
os.register_at_fork(after_in_child=_starting._at_fork_reinit)  # type: ignore[attr-defined]


class _Subprocess(ModuleType):
    """The module `subprocess`, as the file that starts shippers sees it."""

    Popen = _Shipper

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)


def install() -> None:
    """Make this process fork its shippers."""
    process.subprocess = _Subprocess("subprocess")  # type: ignore[attr-defined]


def _prctl(adopts: int) -> None:
    ctypes.CDLL(None).prctl(_SUBREAPER, adopts, 0, 0, 0)


def _serve(connection: socket.socket) -> None:
    owner = os.getppid()
    while connection.recv(1, socket.MSG_PEEK):
        request, files = received(connection)
        between = os.fork()
        if between == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.0002)
            assert os.getppid() == owner
            connection.sendall(b"%d\n" % os.getpid())
            become(request, files[:3], dict(zip(request.passed, files[3:], strict=True)))
            run_to_end(request)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)


if __name__ == "__main__":
    warm_up(sys.argv[2:])
    _serve(socket.socket(fileno=int(sys.argv[1])))
