"""Check where files can be written, write small files atomically, flush them, and read files that may have
been replaced by something else."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def replace_text(path: Path, text: str) -> None:
    """Replace the file at `path` by one with `text`, atomically. Raises `OSError`, and keeps the old file."""
    # Not named after the process: other threads, and those of another container, may replace it at once.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # a full disk leaves an empty file
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write the file that a user named: next to it (or to what a link names), to replace it once
    complete. A pipe or a device, such as /dev/stdout, is written to directly. Raises `OSError`."""
    if _is_special(path):
        yield path
        return
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f"{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield scratch
        scratch.replace(target)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    there = str(path.absolute()).startswith(("/dev/", "/proc/"))  # /dev/stdout may be a file
    return not stat.S_ISDIR(mode) and (there or not stat.S_ISREG(mode))


_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
"""What a file system answers that lacks an operation."""
_NO_RENAME_OF_FOLDERS = frozenset({errno.EMFILE, errno.EXDEV}) | _UNSUPPORTED
"""Mounted object stores have no folders to rename: gcsfuse answers EMFILE."""


def flush_to_disk(path: Path) -> None:
    """Flush the contents of a file, or the names in a folder, to the disk, where the file system supports
    that: they then survive a power cut. Raises `OSError`."""
    is_folder = path.is_dir()
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not is_folder and error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(opened)


def flush_files(folder: Path) -> None:
    """Flush the files of a folder, not those below it, and their names to the disk. Raises `OSError`."""
    # `Path.is_file` raises where another disk, mounted below the folder, fails.
    for path in (*(each for each in folder.iterdir() if os.path.isfile(each)), folder):  # noqa: PTH113
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            flush_to_disk(path)


def rename_folder(folder: Path, target: Path, last: str = "") -> None:
    """Rename a folder to an unused name. On a file system that renames no folders, its files are renamed one
    by one, the one named `last` at the end. Raises `OSError`."""
    try:
        folder.rename(target)
        return
    except OSError as error:
        if error.errno not in _NO_RENAME_OF_FOLDERS or not folder.is_dir():
            raise
    target.mkdir()
    entries = sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder) == Path(last))
    for path in (each for each in entries if each.is_dir() and not each.is_symlink()):
        (target / path.relative_to(folder)).mkdir(parents=True, exist_ok=True)
    for path in (each for each in entries if not each.is_dir() or each.is_symlink()):
        path.rename(target / path.relative_to(folder))
    shutil.rmtree(folder)


def linked(source: Path, path: Path) -> bool:
    """Hard-link a file. `False` if that is impossible: on another file system, or one without hard links."""
    try:
        os.link(source.resolve(strict=True), path)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def link_or_copy(source: Path, path: Path) -> None:
    """Hard-link a file, or copy it where that is impossible. Raises `OSError`."""
    if not linked(source, path):
        shutil.copyfile(source, path)


def copy_mode(path: Path, to: Path) -> None:
    """Give a file the permissions of another, where the file system has permissions."""
    with contextlib.suppress(OSError):
        shutil.copymode(path, to)


@contextlib.contextmanager
def created_aside(path: Path) -> Iterator[Path]:
    """Where to create what is to be at `path`: once complete, it is flushed to the disk and renamed, so that
    neither a killed process nor a power cut leaves something unfinished there. What another process has
    created there meanwhile is kept. Call it in one process at a time: it removes what a killed one left."""
    plain = re.sub(r"[^\w.-]", "_", path.name.lstrip("."))  # MLflow takes an encoded path for another one
    scratch = path.with_name(f".{plain}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch / path.name
        for each in scratch.rglob("*"):
            flush_to_disk(each)
        made = scratch / path.name
        if not os.path.lexists(path):
            rename_folder(made, path) if made.is_dir() else made.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class NotAFile(OSError):
    """There is a pipe, a socket, a device or a circular link instead of a file."""


def open_file(path: Path) -> IO[bytes]:
    """Open the file at `path` for reading. Never blocks, as a pipe without a writer would. Raises `NotAFile`,
    `IsADirectoryError`, or another `OSError`."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket; a circular link
            raise NotAFile(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    mode = os.fstat(opened).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(opened, "rb")
    os.close(opened)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NotAFile(errno.EINVAL, "not a regular file", str(path))


def read_text(path: Path) -> str:
    """Read the UTF-8 text of the file at `path`. Raises the errors of `open_file`, and `ValueError`."""
    with open_file(path) as file:
        return file.read().decode("utf-8")


_OF_THE_KERNEL = (Path("/proc"), Path("/sys"))


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder. For root, permissions do not tell: `/proc`, `/sys` and
    read-only file systems do not accept files. Leaves nothing behind."""
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        return False
    if folder.stat().st_dev in {place.stat().st_dev for place in _OF_THE_KERNEL if place.is_mount()}:
        return False
    try:
        # An unnamed file is never visible. NFS and others do not support them, which proves nothing.
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return error.errno not in (errno.EROFS, errno.EPERM, errno.EACCES)
    return True


def cache_folder() -> Path:
    """The folder for caches: `FMSTUNE_CACHE`, or `fmstune` in the user's cache directory."""
    if chosen := os.environ.get("FMSTUNE_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "fmstune"
    try:
        return Path.home() / ".cache" / "fmstune"
    except RuntimeError:  # a user without a name and HOME, as in containers
        return Path(os.devnull, "fmstune")  # nothing can be stored there
