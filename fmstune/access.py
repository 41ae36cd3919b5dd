"""Why the system refuses access to a path, or room for it, and what to do about it."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
from pathlib import Path

from fmstune.text import shown_path

_DENIED = (errno.EACCES, errno.EPERM)
_OF_A_PATH = (*_DENIED, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def reason(error: OSError, path: Path) -> str:
    """The reason of an error at `path` and its remedy, for the end of a message, without the full stop."""
    said = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    remedy = remedy_of(error, path)
    return f"{said}. {remedy[0].upper()}{remedy[1:]}" if remedy else said


def unusable_path(error: BaseException) -> str | None:
    """The message about an error that another path avoids, such as missing permissions or a name that is too
    long; `None` for other errors."""
    if not isinstance(error, OSError) or error.errno not in _OF_A_PATH:
        return None
    if not isinstance(error.filename, (str, bytes)):
        return None
    path = Path(os.fsdecode(error.filename))
    return f"{shown_path(path)} cannot be used: {reason(error, path)}."


def in_words(error: BaseException) -> str | None:
    """An error of the system as its path, its reason and what to do about it; `None` for other errors."""
    if (parts := what_and_remedy(error)) is None:
        return None
    what, remedy = parts
    return f"{what}. {remedy[0].upper()}{remedy[1:]}" if remedy else what


def what_and_remedy(error: BaseException) -> tuple[str, str] | None:
    """The path and the reason of an error of the system, and what to do about it, which may be unknown;
    `None` for other errors."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE and error.filename is None:
        return os.strerror(errno.EMFILE), remedy_of(error, Path())
    if not isinstance(error, OSError) or not error.errno or not isinstance(error.filename, (str, bytes)):
        return None
    path = Path(os.fsdecode(error.filename))
    return f"{shown_path(path)}: {error.strerror or os.strerror(error.errno)}", remedy_of(error, path)


def denied(path: Path) -> str:
    """`reason` for a path that permissions close to this user."""
    return reason(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), path)


def remedy_of(error: BaseException, path: Path) -> str:
    """What gives access to `path`, or makes room, as a part of a sentence; empty for other errors, and on a
    disk that fails."""
    try:
        return _remedy(error, path)
    except OSError:
        return ""


def _remedy(error: BaseException, path: Path) -> str:
    number = getattr(error, "errno", None)
    if number in _NO_SPACE:
        return "remove some files" if lacks_inodes(path) else "free some space"
    if number == errno.EMFILE:
        return "raise the limit of open files (ulimit -n)"
    if number == errno.EFBIG:
        return "raise the limit of a file's size (ulimit -f), or use another path"
    closed = _closed(path.absolute()) if number in _DENIED else None
    # `os.access` takes what is on a read-only file system for closed.
    if number == errno.EROFS or (closed is not None and _is_read_only(closed)):
        return "its file system is read-only: make it writable, or use another path"
    if number not in _DENIED:
        return ""
    if closed is None:
        # A user may be refused although the modes allow it: `chattr +i`, or a security module.
        return f"see `lsattr -d {shlex.quote(str(path))}`" if number == errno.EPERM else ""
    name = shown_path(_as_given(closed, path))
    owner = closed.stat().st_uid
    if owner != os.geteuid():
        return f"ask {_user(owner)}, the owner of {name}, for access, or use another path"
    rights = "u+rwx" if closed.is_dir() else "u+rw"
    umask = _umask()
    first = f"`umask 022` first (it is {umask:04o}); " if umask & 0o700 else ""
    return f"{first}`chmod {rights} {shlex.quote(name)}` gives you access"


def lacks_home(error: BaseException | None = None) -> bool:
    """Whether this user has no home directory that is known, as a container's user without a name and HOME;
    with an error, whether that is its cause."""
    try:
        Path.home()
    except RuntimeError as why:
        return error is None or str(error) == str(why)
    return False


def nearest(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    whole = path.absolute()
    # `Path.exists` raises for a folder that may not be entered.
    return next(folder for folder in (whole, *whole.parents) if os.path.exists(folder))  # noqa: PTH110


def lacks_inodes(path: Path) -> bool:
    """Whether the file system of `path` has no room for more files, however small."""
    found = _file_system(nearest(path))
    return found is not None and found.f_files > 0 and found.f_favail == 0


def _is_read_only(path: Path) -> bool:
    found = _file_system(path)
    return found is not None and bool(found.f_flag & os.ST_RDONLY)


def _file_system(path: Path) -> os.statvfs_result | None:
    """What the file system of `path` says of itself; `None` if it does not, or not to this user."""
    try:
        return os.statvfs(path)
    except OSError:
        return None


def _closed(path: Path) -> Path | None:
    """The file or directory that denies access to `path`: the first on the way to it."""
    for folder in reversed(path.parents):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):  # noqa: PTH112  (raises for a closed one)
            return folder
    there = os.path.lexists(path)
    needed = os.R_OK | os.W_OK | (os.X_OK if os.path.isdir(path) else 0)  # noqa: PTH112
    if there and not os.access(path, needed):
        return path
    above = nearest(path.parent)
    return None if os.access(above, os.W_OK) else above


def _as_given(closed: Path, path: Path) -> Path:
    """`closed`, relative as far as `path` is."""
    if path.is_absolute():
        return closed
    try:
        return closed.relative_to(Path.cwd())
    except (OSError, ValueError):
        return closed


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # as in containers
        return f"the user {number}"


def _umask() -> int:
    """The umask: Linux tells it; elsewhere, it can only be read by setting it, which other threads notice."""
    try:
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0)
    except OSError:
        return 0
