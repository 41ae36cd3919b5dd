"""A lock belongs to one process only: no process that it started keeps it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fmstune.system import locks
from tests.support.moments import acting

HOLDER = """
import ctypes, os, sys, time
from pathlib import Path
from fmstune.system import locks
assert locks.acquire(Path(sys.argv[1])) is not None
fork = os.fork if sys.argv[2] == "python" else ctypes.CDLL(None).fork  # of which Python knows nothing
child = fork() if sys.argv[2] != "none" else -1
if child:
    print(child, flush=True)
time.sleep(600)
"""


@contextmanager
def held(path: Path, child: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock, and the child that it forked."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), child], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    forked = int(process.stdout.readline())
    try:
        yield process, forked
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if forked > 0:
            os.kill(forked, signal.SIGKILL)


def test_one_process_holds_a_lock_and_others_learn_which(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert locks.holder(path) is None
    with held(path, "none") as (process, _):
        assert locks.acquire(path) is None
        found = locks.holder(path)
        assert found is not None
        assert found.pid == process.pid
        assert locks.describe(found) == f"another process (pid {process.pid})"
    assert locks.holder(path) is None
    lock = locks.acquire(path)
    assert lock is not None
    assert locks.acquire(path) is None
    lock.release()
    lock.release()
    assert locks.holder(path) is None


def test_children_forked_by_python_do_not_keep_the_lock_of_a_killed_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path, "python") as (process, child):
        process.kill()
        process.wait()
        os.kill(child, 0)
        assert locks.holder(path) is None
        lock = locks.acquire(path)
        assert lock is not None
        lock.release()


def test_children_forked_by_a_library_do_not_keep_the_lock_of_a_killed_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path, "library") as (process, child):
        process.kill()  # not waited for, so it is a zombie
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.kill(child, 0)
        assert locks.holder(path) is None
        lock = locks.acquire(path)
        assert lock is not None
        found = locks.holder(path)
        assert found is not None
        assert found.pid == os.getpid()
        lock.release()


def test_of_a_holder_on_another_machine_only_the_lock_is_known(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = locks.acquire(path)
    assert lock is not None
    path.write_text(json.dumps({"pid": 1 << 30, "started": 5, "place": "another boot"}))
    assert locks.holder(path) == locks.Process(1 << 30, 5, "another boot")
    assert locks.acquire(path) is None
    path.write_text("garbage")
    assert locks.describe(locks.holder(path)) == "another process"
    assert locks.acquire(path) is None
    lock.release()


def test_a_lock_whose_descriptor_was_reused_for_another_file_closes_only_its_own(
    tmp_path: Path,
) -> None:
    lock = locks.acquire(tmp_path / "lock")
    assert lock is not None
    other = tmp_path / "other"
    other.write_text("kept")
    file = os.open(other, os.O_RDWR)
    os.dup2(file, lock._file)  # like a tracker that closes all files
    lock.release()
    assert other.read_text() == "kept"
    os.close(lock._file)
    os.close(file)


def test_a_holder_on_another_machine_is_described_as_one(tmp_path: Path) -> None:
    lock = locks.acquire(tmp_path / "lock")
    assert lock is not None
    try:
        assert locks.describe(locks.holder(tmp_path / "lock")) == f"another process (pid {os.getpid()})"
        owner = json.loads((tmp_path / "lock").read_text())
        (tmp_path / "lock").write_text(json.dumps({**owner, "pid": 7, "place": "another boot"}))
        said = locks.describe(locks.holder(tmp_path / "lock"))
        assert said == "another process (pid 7, on another machine or in another container)"
    finally:
        lock.release()


def test_a_lock_whose_holder_removes_its_file_is_held_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_SECONDS_TO_SHARE", 0.02)
    path = tmp_path / "lock"
    for moment in itertools.count(1):
        first = locks.acquire(path)
        assert first is not None

        def leave() -> None:
            path.unlink()
            first.release()  # noqa: B023

        with acting(moment, leave, locks) as left:
            second = locks.acquire(path)
        assert (locks.holder(path) is not None) == (second is not None or not left), left
        for lock in (first, second):
            if lock is not None:
                lock.release()
        if not left:
            break
    assert moment > 10
