"""A killed process does not keep later ones from compiling kernels; torch's own lock would, forever."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from fmstune.system import kernel_builds
from fmstune.system.kernel_builds import BuildLock, use_build_lock
from tests.support.commands import Command, start

BUILDS = """
import sys, time
from pathlib import Path
from fmstune.system.kernel_builds import BuildLock
lock = BuildLock(sys.argv[1])
assert lock.try_acquire()
print("builds", flush=True)
while not Path("done").exists():
    time.sleep(0.01)
lock.release()
"""


def builder(path: Path) -> Command:
    """A process that holds the lock until there is a file `done` beside it."""
    script = path.with_name("builds.py")
    script.write_text(BUILDS)
    process = start(str(path), cwd=path.parent, module=str(script))
    assert process.stdout is not None
    assert process.stdout.readline() == "builds\n"
    return process


def test_the_build_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with builder(tmp_path / "lock") as killed:
        killed.kill()
    assert (tmp_path / "lock").exists()
    lock = BuildLock(str(tmp_path / "lock"))
    assert lock.try_acquire()
    lock.release()
    assert not (tmp_path / "lock").exists()


def test_the_build_of_a_living_process_is_awaited_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_builds, "_SECONDS_TO_REPORT", 0.0)
    with builder(tmp_path / "lock") as other:

        def finish(message: str, **_: object) -> None:
            assert f"waiting for another process (pid {other.pid})" in message
            assert f"delete {tmp_path / 'lock'}" in message
            (tmp_path / "done").touch()
            other.communicate()

        monkeypatch.setattr(kernel_builds.warnings, "warn", finish)
        assert not BuildLock(str(tmp_path / "lock")).try_acquire()  # its build is used
    assert other.returncode == 0


def test_a_long_build_is_reported_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_builds, "_SECONDS_OF_A_CACHED_BUILD", 0.0)
    said: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(kernel_builds.warnings, "warn", said.put)
    lock = BuildLock(str(tmp_path / "lock"))
    assert lock.try_acquire()
    assert said.get() == (
        f"compiling the kernels in {tmp_path}, which takes minutes; later runs use them from there"
    )
    lock.release()


def test_a_build_that_has_ended_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(kernel_builds.warnings, "warn", said.put)
    lock = BuildLock(str(tmp_path / "lock"))
    assert lock.try_acquire()
    lock.release()
    assert lock._notice is not None
    lock._notice.join()
    assert said.empty()


def test_torch_compiles_with_this_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "FileBaton", FileBaton)
    use_build_lock()
    assert cpp_extension.FileBaton is BuildLock
