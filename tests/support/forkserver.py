"""A warm interpreter: imports the trainer, or trackers' SDKs, once, and forks for each command.

Started by `tests.support.commands`. Importing torch, TRL and the rest takes five seconds of CPU, which each
`fmstune train` of a test would pay. A forked process has its own process id, streams, working directory,
environment, limits and signal handlers, and runs the module as `python -m` does; only the imports are already
there. It ends as an interpreter does, with its threads, exit functions and streams, but does not tear down
the imported modules, which would take longer than a short training.

A warm interpreter that needs what another has imported is forked from that one. It runs this file with two
more file descriptors: the socket that it listens on, and the one that signals that its owner has ended.

A launcher of several processes that is forked from here forks its ranks, which would otherwise import
everything again. They are its children, as they are when torch starts them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import logging
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.support.large_pages import use_large_pages
from tests.support.metadata import forget, read_once
from tests.support.parents import fork_under_stand_in

_SITE = [each for each in sys.path if each not in ("", str(Path.cwd()), os.environ.get("PYTHONPATH"))]
"""The paths of the standard library and packages."""
_MOST = 1 << 20
"""The number of bytes of a request that are read at a time."""
HIGH = 512
"""A file descriptor above those that a test has open."""
_OF_SERVERS = ("mlflow.server", "mlflow.server.fastapi_app")
"""Modules that read environment variables into a server's state at import, and load fast."""
_LAUNCHERS = ("torch.distributed.run", "accelerate.commands.accelerate_cli")


@dataclass(frozen=True, slots=True)
class Request:
    """A command to run: `python -m MODULE ARGUMENTS`, or `python FILE ARGUMENTS`."""

    module: str
    arguments: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    limits: Sequence[tuple[int, int]] = ()
    session: bool = False
    closed: bool = False
    """Whether it starts without standard streams."""
    asker: int | None = None
    """The process with which its parent ends (see `tests.support.parents`), if it needs such a parent."""
    passed: Sequence[int] = ()
    """The descriptors of its files other than the standard streams."""


def serve(listening: socket.socket, owner: int) -> tuple[Request, list[int]] | None:
    """Fork for each request, and report how each process ended.

    Returns in each forked process, with its request and its streams; and in this one with `None`, once the
    owner has ended or has closed its end of the socket.
    """
    with selectors.DefaultSelector() as waiting:
        waiting.register(listening, selectors.EVENT_READ)
        waiting.register(owner, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj == owner:
                    return None
                if key.fileobj is listening:
                    connection, _ = listening.accept()
                    request, streams = received(connection)
                    pid = os.fork()
                    if pid == 0:
                        return request, streams
                    for stream in streams:
                        os.close(stream)
                    connection.sendall(b"%d\n" % pid)
                    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
                else:
                    pid, connection = key.data
                    waiting.unregister(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with connection, contextlib.suppress(OSError):  # a failed test may have stopped waiting
                        connection.sendall(b"%d\n" % code)


def become(
    request: Request,
    streams: Sequence[int],
    passed: Mapping[int, int] | None = None,
    kept: Sequence[int] = (),
) -> None:
    """Give this process, which was just forked, the state that `python -m` starts with, and dup the passed
    files to their expected descriptors. `kept` descriptors stay open."""
    moved = {number: fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for number, file in (passed or {}).items()}
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    last = 2
    for number in (*sorted(kept), HIGH):
        os.closerange(last + 1, number)
        last = number
    for number, file in moved.items():
        os.dup2(file, number)
    os.closerange(HIGH, os.sysconf("SC_OPEN_MAX"))
    if request.session:
        os.setsid()
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    for kind, most in request.limits:
        resource.setrlimit(kind, (most, most))
    ignored = (signal.SIGPIPE, signal.SIGXFSZ)
    usual = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(ignored, signal.SIG_IGN)}
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(signum) is not None:  # the C library reserves two signals
            signal.signal(signum, usual.get(signum, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    more = request.environment.get("PYTHONPATH")
    sys.path[:] = [request.cwd, *(more.split(os.pathsep) if more else []), *_SITE]
    sys.argv[1:] = request.arguments  # `runpy` sets argv[0]
    if _is_file(request.module):
        sys.path[0] = str(Path(request.module).parent)
    how = [request.module] if _is_file(request.module) else ["-m", request.module]
    sys.orig_argv[:] = [sys.executable, *how, *request.arguments]
    tempfile.tempdir = None
    _leave_folders()
    importlib.invalidate_caches()
    forget()
    if any(Path(each, "sitecustomize.py").exists() for each in (more or "").split(os.pathsep)):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    if request.closed:
        os.closerange(0, 3)
        sys.stdin = sys.stdout = sys.stderr = None
        sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None  # type: ignore[misc]
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:  # `random` reseeds itself
        numpy.random.seed()
    for name in _OF_SERVERS if request.module == "uvicorn" else ():
        sys.modules.pop(name, None)
    if request.module in _LAUNCHERS or "--nproc" in request.arguments:
        sys.modules.pop(
            request.module if request.module in _LAUNCHERS else "", None
        )  # it is run as `__main__`
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
        from torch.distributed.elastic.rendezvous import dynamic_rendezvous

        subprocess_handler.Popen = _Rank
        # Nothing reads the names in its events, and each event reads the sources of all imported modules.
        dynamic_rendezvous.get_method_name = lambda depth=2: "a method"


def _leave_folders() -> None:
    """Keep the exit of this process from removing temporary folders that it shares with all that were forked
    from the same interpreter, such as the one in which W&B writes tables."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    media: Any = sys.modules.get("wandb.sdk.data_types._private")
    if media is not None:
        atexit.unregister(media.MEDIA_TMP.cleanup)


class _Rank(subprocess.Popen):  # type: ignore[type-arg]
    """A child forked from this process, where `Popen` would fork and execute `python -u -m MODULE`."""

    def _execute_child(self, *all: Any) -> None:
        command, environment, stdout, stderr = all[0], all[6], all[13], all[15]
        python, *flags, module = command[: command.index("-m") + 2]
        assert (python, flags) == (sys.executable, ["-u", "-m"]), command
        request = Request(module, command[command.index("-m") + 2 :], str(Path.cwd()), environment)
        before = _open_files()
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            return
        # libuv, used by the launcher's store, closes a pipe by its descriptors and recreates it in each
        # forked child: here and in the process that writes the rank's log, whose files would have the same
        # numbers.
        made = [number for number, what in _open_files().items() if before.get(number) != what]
        os.setsid()
        # What the launcher leaves to the garbage collector, such as its store, has a thread that is not here.
        gc.freeze()
        with open(os.devnull, "rb") as nothing:
            streams = [number if stream < 0 else stream for number, stream in ((1, stdout), (2, stderr))]
            _run_here(request, [nothing.fileno(), *map(os.dup, streams)], made)


def _open_files() -> dict[int, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            found[int(path.name)] = str(path.readlink())
    return found


def _run_here(request: Request, streams: Sequence[int], kept: Sequence[int]) -> NoReturn:
    """Run a command in a process that was forked in the middle of other code, which must not continue."""
    code = 1
    try:
        atexit._clear()
        logging.disable(logging.NOTSET)
        become(request, streams, kept=kept)
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        _run(request)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """End this process as the interpreter does, but without tearing down its modules."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        code = code or 120  # the interpreter's own exit code when a stream cannot be flushed
    finally:
        os._exit(code)


def run_to_end(request: Request) -> NoReturn:
    """Run a command and end this process as an interpreter does."""
    code = 0
    try:
        _run(request)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    _end(code)


def _is_file(module: str) -> bool:
    return os.sep in module


def _run(request: Request) -> None:
    if _is_file(request.module):
        runpy.run_path(request.module, run_name="__main__")
    else:
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)


def received(connection: socket.socket) -> tuple[Request, list[int]]:
    """A request, with the files that were passed with it."""
    head, streams, _, _ = socket.recv_fds(connection, _MOST, 8)
    while not head.endswith(b"\n"):
        head += connection.recv(_MOST)
    return Request(**json.loads(head)), streams


def warm_up(modules: Sequence[str]) -> None:
    """Import modules, and exclude them from garbage collection. Names with a slash are test files and
    folders, which pytest imports."""
    from fmstune.launch.environment import quiet_libraries
    from fmstune.training.sdks import sdks_deferred

    read_once()
    trainer = any(name.startswith("fmstune.training") for name in modules)
    command = "pytest" not in modules
    names = [name for name in modules if not _is_file(name)]
    tests = [name for name in modules if _is_file(name)]
    # Set both as the command does when it imports these.
    with warnings.catch_warnings(), sdks_deferred() if trainer and command else contextlib.nullcontext():
        if command:
            quiet_libraries()
        for name in names:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:  # moved or missing in another version of the library
                if name.startswith("fmstune"):
                    raise
    if tests:
        _collect(tests)
    conversions: Any = sys.modules.get("transformers.conversion_mapping")
    if conversions is not None:  # it compiles a thousand regexes when a model is first saved
        conversions.get_checkpoint_conversion_mapping("llama")
    # The collector writes to every object that it scans, so that each process would copy all their pages.
    gc.collect()
    gc.freeze()
    use_large_pages()


def _collect(tests: Sequence[str]) -> None:
    """Have pytest rewrite and import test modules once, instead of once per worker."""
    import pytest

    pytest.main(["--collect-only", "-n0", "-p", "no:cacheprovider", *tests])  # workers report the errors
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in list(sys.modules):
        if name.startswith("tests.") and name.endswith("conftest"):  # these set up a session
            del sys.modules[name]


def _main() -> None:
    if os.fork():
        os._exit(0)
    listening, owner = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which closes its end
    warm_up(sys.argv[3:])
    work = serve(listening, owner)
    if work is None:  # also when the owner was killed, or has ended without its atexit functions
        # Each process that shares the folder removes it.
        shutil.rmtree(Path(listening.getsockname()).parent, ignore_errors=True)
        return
    listening.detach()  # `become` closes it
    request, streams = work
    if request.asker is not None:
        request = fork_under_stand_in(request, streams)
        become(request, streams[:3], dict(zip(request.passed, streams[3:], strict=True)))
    else:
        become(request, streams, kept=range(3, len(streams)))
    run_to_end(request)


if __name__ == "__main__":
    _main()
