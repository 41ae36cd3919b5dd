"""Shippers that tests start in their own process are forked from a warm interpreter, which has their imports.

Started as in a run, each imports its tracker's SDK for half a second to a second and a half of CPU, and a
test of deliveries starts three or four. What is started is otherwise the same: a process with a supervisor,
which is a child of the test's process as the trainer's is, and has the files, the environment and the session
that `Popen` gives it.

The warm interpreter is a child of the test's process too. It forks twice and the process between ends, so
that what it has forked is adopted by the nearest subreaper, which the test's process is for that moment. The
interpreters of SDKs are forked so, too, from one that has imported what several of them import.

Trainings in processes of their own start theirs as users' do, and so does a test with modules of its own that
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
from tests.support.surroundings import ENVIRONMENT

_ROOT = Path(__file__).parents[2]
_SUPERVISOR = "fmstune.delivery.shipping.supervisor"
_PLAIN = (
    "fmstune.delivery.shipping.main", "fmstune.delivery.sync", "fmstune.trackers.registry",
    "fmstune.trackers.file_tracker", "tests.sample_trackers",
)  # fmt: skip
_AT_IMPORT = re.compile("PYTHON(?!PATH$)|LANG|LC_|LD_|XDG_")
"""Variables that Python reads when it starts, and libraries when they are imported."""
_SUBREAPER = 36
_SERVER = "tests.support.warm_shippers"
_COMMON = "of several"


class _Warm:
    """A warm interpreter, which ends with the process that has started it; forked from `base`, if given."""

    def __init__(self, modules: tuple[str, ...], base: _Warm | None = None) -> None:
        self.names = {name.partition(".")[0] for name in modules}
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._ended = False
        self._environment = {
            **ENVIRONMENT, **QUIET, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._mine, theirs = socket.socketpair()
        number = theirs.fileno()
        with theirs, open(os.devnull, "r+b") as nothing:
            if base is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _SERVER, str(number), *modules],
                    cwd=_ROOT, env=self._environment, pass_fds=(number,), start_new_session=True,
                    stdin=nothing, stdout=nothing, stderr=nothing,
                )  # fmt: skip
                self.pid = self._process.pid
            else:
                request = {
                    "module": _SERVER, "arguments": [str(number), *modules, str(number)], "cwd": str(_ROOT),
                    "environment": self._environment, "session": True,
                }  # fmt: skip
                self.pid = base.fork(request, [*[nothing.fileno()] * 3, number])

    def serves(self, environment: Mapping[str, str], cwd: str | None) -> bool:
        """Whether a process with this environment and this one's search path would import the same."""
        if self.owner != os.getpid():
            return False
        mine, theirs = (
            {
                name: value
                for name, value in each.items()
                if _AT_IMPORT.match(name) or sdks.AT_IMPORT.match(name)
            }
            for each in (self._environment, environment)
        )
        searched = [each for each in (*sys.path, cwd or "") if "site-packages" not in each]
        places = {Path(each).resolve() for each in searched}
        return mine == theirs and not any(map(self._hides, places - {_ROOT}))

    def _hides(self, folder: Path) -> bool:
        if not folder.is_dir() or folder.joinpath("os.py").exists():  # the standard library
            return False
        found = [path for path in folder.iterdir() if path.name.partition(".")[0] in self.names]
        return any(path.suffix == ".py" or path.joinpath("__init__.py").exists() for path in found)

    def has_ended(self) -> bool:
        """Whether somebody has ended it, as tests do that end all their children."""
        if not self._ended:
            try:
                self._ended = os.waitpid(self.pid, os.WNOHANG) != (0, 0)
            except ChildProcessError:  # such a test has waited for it, too
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
    """What the processes of one tracker have of their own: variables, and the kernel's limits. `pid` is the
    newest one's."""

    environment: Mapping[str, str] = field(default_factory=dict)
    limits: list[tuple[int, int]] = field(default_factory=list)
    pid: int | None = None


around: defaultdict[str, Around] = defaultdict(Around)
"""By the tracker's name."""


class _Shipper(subprocess.Popen):  # type: ignore[type-arg]
    """What `Popen` starts, forked where it is a supervisor whose imports are warm."""

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
        cwd, arguments = str(cwd or Path.cwd()), [*command[3:], *map(str, passed)]
        request = {
            "module": _SUPERVISOR, "arguments": arguments, "cwd": cwd, "environment": environment,
            "session": session, "limits": own.limits,
        }  # fmt: skip
        self.pid = own.pid = warm.fork(request, [all[10], all[13], all[15], *passed])
        self._child_created = True
        self._close_pipe_fds(*all[10:16])  # type: ignore[attr-defined]


def _warm_for(command: list[str], environment: Mapping[str, str], cwd: str | None) -> _Warm | None:
    if sys.platform != "linux" or command[:3] != [sys.executable, "-m", _SUPERVISOR]:
        return None
    if environment.get("PYTHONPATH", str(_ROOT)) != str(_ROOT):
        return None
    kind = command[3].partition("-")[0]  # the second `wandb` of a run is `wandb-2`
    with _starting:
        warm = _running(kind if kind in sdks.MODULES else "")
    return warm if warm.serves(environment, cwd) else None


def _running(sdk: str) -> _Warm:
    warm = _warm.get(sdk)
    if warm is None or (warm.owner == os.getpid() and warm.has_ended()):
        if sdk == "aim":
            provide_database()
        if sdk in sdks.MODULES:
            base = _running(_COMMON)
            # In a forked process it is the parent's, for which it forks children.
            warm = _Warm((*_PLAIN, *sdks.MODULES[sdk]), base if base.owner == os.getpid() else None)
        else:
            warm = _Warm((*_PLAIN, *sdks.COMMON) if sdk == _COMMON else _PLAIN)
        _warm[sdk] = warm
    return warm


_warm: dict[str, _Warm] = {}
_starting = threading.Lock()
os.register_at_fork(after_in_child=_starting._at_fork_reinit)  # type: ignore[attr-defined]


class _Subprocess(ModuleType):
    """The module `subprocess`, as the file that starts shippers sees it."""

    Popen = _Shipper

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)


def install() -> None:
    """Let this process fork its shippers."""
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
            at = len(request.arguments) - len(files[3:])
            numbers = [int(number) for number in request.arguments[at:]]
            del request.arguments[at:]  # type: ignore[attr-defined]
            become(request, files[:3], dict(zip(numbers, files[3:], strict=True)))
            run_to_end(request)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)


if __name__ == "__main__":
    warm_up(sys.argv[2:])
    _serve(socket.socket(fileno=int(sys.argv[1])))
