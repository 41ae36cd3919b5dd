"""Find the directories that hold runs, and detect changes to a run's files without reading them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmstune.config.paths.runs import no_such_run
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR

DEFAULT = ("runs", ".")
_DEPTH_HERE = 3
"""How deep to search below the current directory by default: it may be a home directory."""
_NEVER = frozenset({TRACKING_DIR, "node_modules", "__pycache__", "site-packages"})
_JOURNAL = f"/{TRACKING_DIR}/{JOURNAL_NAME}"
_CONFIG = f"/{CONFIG_NAME}"


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A directory with a journal: its path as given, its real path, and the `state` of its files, which
    differs after any change to them. `changed` is the time of the last change, in nanoseconds."""

    path: str
    real: str
    state: str
    changed: int


@dataclass(slots=True)
class Walk:
    """A search for runs. `unreadable` are the directories that could not be read."""

    unreadable: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def below(self, named: Sequence[Path]) -> list[FoundRun]:
        """The runs in and below directories (by default `runs/` and the current directory), without
        duplicates. Skips hidden directories, checkpoints, and links except those to a run. Raises
        `ConfigError`."""
        for each in named:
            if not each.exists():
                raise ConfigError(no_such_run(each))
            if not each.is_dir():
                raise ConfigError(f"{each} is a file; use the directory of a run, or of several runs.")
        if named:
            return [run for each in named for run in self._in(str(each), None)]
        depths: Iterable[tuple[str, int | None]] = zip(DEFAULT, (None, _DEPTH_HERE), strict=True)
        return [run for name, depth in depths if Path(name).is_dir() for run in self._in(name, depth)]

    def _in(self, root: str, depth: int | None) -> Iterator[FoundRun]:
        yield from self._descend(root, os.path.realpath(root), depth)

    def _descend(self, path: str, real: str, depth: int | None) -> Iterator[FoundRun]:
        if real in self._seen:
            return
        self._seen.add(real)
        below: list[tuple[str, bool]] = []
        tracked = False
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    if entry.name == TRACKING_DIR:
                        tracked = True
                    elif entry.is_dir(follow_symlinks=False) and not _is_skipped(entry.name):
                        below.append((entry.name, False))
                    elif entry.is_symlink() and os.path.lexists(entry.path + _JOURNAL):
                        below.append((entry.name, True))
        except OSError:
            self.unreadable.append(path)
            return
        if tracked and (run := look(path, real)) is not None:
            yield run
        if depth is not None:
            depth -= 1
        if depth is None or depth >= 0:
            for name, is_link in sorted(below):
                inner = f"{real.rstrip('/')}/{name}"
                yield from self._descend(
                    _inside(path, name), os.path.realpath(inner) if is_link else inner, depth
                )


def look(path: str, real: str | None = None) -> FoundRun | None:
    """The run in a directory; `None` if it has no journal."""
    real = os.path.realpath(path) if real is None else real
    try:
        journal = os.stat(real + _JOURNAL)  # noqa: PTH116  (a tenth of the time of a `Path`)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        if missing and not os.path.lexists(real + _JOURNAL):
            return None
        return FoundRun(path, real, "", 0)  # reading it reports what is wrong
    state, changed = _state(journal), max(journal.st_mtime_ns, journal.st_ctime_ns)
    try:
        config = os.stat(real + _CONFIG)  # noqa: PTH116
    except OSError:
        return FoundRun(path, real, state, changed)
    return FoundRun(
        path, real, f"{state} {_state(config)}", max(changed, config.st_mtime_ns, config.st_ctime_ns)
    )


def _state(of: os.stat_result) -> str:
    # `ctime` too: a copy may restore the modification time, but cannot set this one.
    return f"{of.st_dev} {of.st_ino} {of.st_size} {of.st_mtime_ns} {of.st_ctime_ns}"


def _is_skipped(name: str) -> bool:
    return name.startswith((".", "checkpoint-")) or name in _NEVER


def _inside(path: str, name: str) -> str:
    return name if path == "." else f"{path.rstrip('/')}/{name}"
