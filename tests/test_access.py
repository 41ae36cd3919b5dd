"""A refused access is explained with what gives access."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmstune.access import in_words, lacks_home, reason, remedy_of
from fmstune.delivery.shipping.main import check
from fmstune.system.disk import shortage
from fmstune.trackers.base import Check, Tracker
from tests.support.file_systems import mounted
from tests.support.tuned import dry_run_shown
from tests.support.unprivileged import unprivileged


def said(here: Path, path: str, do: str = "open(path).read()") -> str:
    """`reason` of the error that an access raises, in a process to which permissions apply."""
    code = f"""
import os
from pathlib import Path
from fmstune.access import reason
path = {path!r}
try:
    {do}
except OSError as error:
    print(reason(error, Path(path)))
"""
    done = unprivileged(code, here)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_own_file_or_directory_that_is_closed_is_named_with_its_chmod(tmp_path: Path) -> None:
    (tmp_path / "closed" / "inner").mkdir(parents=True)
    (tmp_path / "a file").touch(0o000)
    (tmp_path / "closed").chmod(0)
    assert said(tmp_path, "closed/inner/x") == "Permission denied. `chmod u+rwx closed` gives you access"
    assert said(tmp_path, "a file") == "Permission denied. `chmod u+rw 'a file'` gives you access"
    absolute = f"{tmp_path}/closed"
    assert said(tmp_path, f"{absolute}/x") == f"Permission denied. `chmod u+rwx {absolute}` gives you access"


def test_a_directory_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir(0o555)
    does = "open(path, 'w')"
    assert said(tmp_path, "full/new", does) == "Permission denied. `chmod u+rwx full` gives you access"


def test_a_umask_that_closes_new_directories_is_named_first(tmp_path: Path) -> None:
    does = "os.umask(0o777); os.mkdir(path); os.mkdir(f'{path}/inner')"
    assert said(tmp_path, "new", does) == (
        "Permission denied. `umask 022` first (it is 0777); `chmod u+rwx new` gives you access"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_the_owner_of_a_foreign_file_is_named(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir(0o700)
    os.chown(foreign, 1, 1)
    assert said(tmp_path, "foreign/x") == (
        "Permission denied. Ask daemon, the owner of foreign, for access, or use another path"
    )
    os.chown(foreign, 54321, 1)
    assert "Ask the user 54321, the owner of foreign," in said(tmp_path, "foreign/x")


def test_a_file_system_without_write_access_is_named() -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "x")
    assert reason(error, Path("x")).endswith(
        "file system is read-only: make it writable, or use another path"
    )
    assert remedy_of(error, Path("x"))


def test_a_file_system_that_says_nothing_of_itself_is_not_in_the_way(tmp_path: Path) -> None:
    """As some mounted object stores. A stand-in, as there is no such file system here."""
    (tmp_path / "closed").mkdir(0)
    does = "os.statvfs = lambda path: os.stat('missing'); open(path).read()"
    assert said(tmp_path, "closed/x", does) == "Permission denied. `chmod u+rwx closed` gives you access"


def test_other_errors_have_only_their_reason() -> None:
    assert reason(OSError(errno.EIO, "Input/output error"), Path("x")) == "Input/output error"
    assert reason(OSError("of a library"), Path("x")) == "of a library"


@pytest.fixture
def few_files(tmp_path: Path) -> Iterator[Path]:
    """A file system for four files."""
    with mounted(tmp_path / "disk", "size=9m,nr_inodes=4") as path:
        yield path


def test_a_disk_with_room_but_no_inodes_is_not_called_full(few_files: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised:
        [(few_files / str(number)).touch() for number in range(9)]
    short = shortage(raised.value, few_files / "checkpoint-3" / "model.safetensors")
    assert short is not None
    assert "no room for more files (inodes)" in short.what
    assert reason(raised.value, few_files / "x") == "No space left on device. Remove some files"


class AtHome(Tracker):
    """Reads the home directory, as W&B, SwanLab and ClearML do."""

    def track(self, *_: object, **__: object) -> None: ...

    def check(self, timeout: float) -> Check:
        Path.home()
        raise ValueError("not at home")


def test_a_user_without_a_home_directory_is_told_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lacks_home()
    assert "own documentation" in check(AtHome(), 1).remedy
    monkeypatch.delenv("HOME")

    def unknown(user: int) -> object:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)  # another user may not read this interpreter
    assert check(AtHome(), 1).remedy.startswith("set HOME to a directory")
    assert "no home directory" in dry_run_shown("model.path=demo", "data.train=demo")


@pytest.mark.parametrize("name", [None, "journal.jsonl"])
def test_too_many_open_files_name_the_limit(name: str | None) -> None:
    found = in_words(OSError(errno.EMFILE, os.strerror(errno.EMFILE), name))
    assert (
        found
        == f"{f'{name}: ' if name else ''}Too many open files. Raise the limit of open files (ulimit -n)"
    )
