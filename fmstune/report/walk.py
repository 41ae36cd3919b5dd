"""Which directories hold runs, and what can be seen of a run's files without reading them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmstune.config.paths.runs import no_such_run
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR

DEFAULT = ("runs", ".")
_DEPTH_HERE = 3
"""So deep below the current directory runs are looked for when nobody has named one: it may be a home."""
_NEVER = frozenset({TRACKING_DIR, "node_modules", "__pycache__", "site-packages"})
_JOURNAL = f"/{TRACKING_DIR}/{JOURNAL_NAME}"
_CONFIG = f"/{CONFIG_NAME}"


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A directory with a journal: as it was named, without links in its name, and the `state` of its files,
    which is another one after any change to them. `changed` is when that was last, in nanoseconds."""

    path: str
    real: str
    state: str
    changed: int


@dataclass(slots=True)
class Walk:
    """A search for runs. `unreadable` are the directories that could not be looked into."""

    unreadable: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def below(self, named: Sequence[Path]) -> list[FoundRun]:
        """The runs in and below directories, each once; of `runs/` and the current directory where none is
        named. Not looked into are hidden directories, checkpoints, and links but those to a run. Raises
        `ConfigError`."""
        for each in named:
            if not each.exists():
                raise ConfigError(no_such_run(each))
            if not each.is_dir():
                raise ConfigError(f"{each} is a file; give the directory of runs, or of a run.")
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
                    elif entry.is_dir(follow_symlinks=False) and not _is_never(entry.name):
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
    """The run in a directory; `None` when there is no journal in it."""
    real = os.path.realpath(path) if real is None else real
    try:
        journal = os.stat(real + _JOURNAL)  # noqa: PTH116  (a tenth of the time of a `Path`)
    except OSError:
        if not os.path.lexists(real + _JOURNAL):
            return None
        return FoundRun(path, real, "", 0)  # reading it says what is wrong
    state, changed = _state(journal), max(journal.st_mtime_ns, journal.st_ctime_ns)
    try:
        config = os.stat(real + _CONFIG)  # noqa: PTH116
    except OSError:
        return FoundRun(path, real, state, changed)
    return FoundRun(
        path, real, f"{state} {_state(config)}", max(changed, config.st_mtime_ns, config.st_ctime_ns)
    )


def _state(of: os.stat_result) -> str:
    # `ctime` too: somebody's copy may restore the time of a change, and nobody can set this one.
    return f"{of.st_dev} {of.st_ino} {of.st_size} {of.st_mtime_ns} {of.st_ctime_ns}"


def _is_never(name: str) -> bool:
    return name.startswith((".", "checkpoint-")) or name in _NEVER


def _inside(path: str, name: str) -> str:
    return name if path == "." else f"{path.rstrip('/')}/{name}"
