"""Aim's repository in a folder: created by one process at a time, and examined without changing it.

Aim 3.29.1 creates `.aim` first and writes its file VERSION last. It takes a folder without VERSION for a
repository of Aim 2, so that two concurrent runs in a fresh folder reported each other as one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fmstune.system.files import created_aside
from fmstune.system.locks import folder_locked
from fmstune.trackers.continued import MARK
from fmstune.trackers.records import RunStart

State = Literal["missing", "unfinished", "ready", "older", "damaged"]

HELD = "last_event"
"""In a run's mark: the last event that it is known to hold."""
_OF_A_NEW_ONE = {
    "locks", "meta", "progress", "run_metadata.sqlite", "run_metadata.sqlite-journal",
    "check_ins", "seqs",  # recreated by a process that still writes after `.aim` was removed
}  # fmt: skip
_INDEX_SECONDS = 3.0
_LOOK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder contains; `why` is the problem with it."""

    state: State
    why: str = ""


def repository(folder: str) -> Any:
    """Aim's `Repo` in a folder, created when absent, completed when unfinished. A process killed in the
    middle of creating one may leave a database that Aim cannot complete: it is created aside."""
    from aim import Repo
    from aim.sdk.configs import get_aim_repo_name

    Path(folder).mkdir(parents=True, exist_ok=True)
    with folder_locked(Path(folder)):
        state = examine(Path(folder)).state
        if state == "missing":
            with created_aside(Path(folder) / get_aim_repo_name()) as path:
                Repo.from_path(str(path.parent), init=True)
        return Repo.from_path(folder, init=state == "unfinished")


def index(run: Any, seconds: float = _INDEX_SECONDS) -> bool:
    """Make the run visible to Aim's SDK at once: it shows only indexed runs, and otherwise `aim up` writes
    the index while it runs. One process at a time writes it: `aim up`, or another run that ends.

    Returns whether it succeeded within so many seconds."""
    from aim.sdk.index_manager import RepoIndexManager

    until = time.monotonic() + seconds
    while True:
        try:
            RepoIndexManager.get_index_manager(run.repo).index(run.hash)
            return True
        except Exception as error:  # of several types, depending on the holder; the run itself is written
            if time.monotonic() > until:
                print(f"aim: the run is not indexed yet, `aim up` will do it ({error})")
                return False
        time.sleep(0.1)


def storage_of(run: Any) -> tuple[Path, ...]:
    """The folders and the database where Aim 3.29.1 stores a run of a local repository."""
    return stored_at(Path(run.repo.path), run.hash)


def stored_at(place: Path, run_hash: str) -> tuple[Path, ...]:
    """The same, for a run of this hash in the repository whose own folder is `place`."""
    chunks = (place / part / "chunks" / run_hash for part in ("meta", "seqs"))
    return (*chunks, place / "run_metadata.sqlite")


def is_stored(folder: Path, start: RunStart, last: int) -> bool | None:
    """Whether the repository in a folder holds a run up to the event `last`, without changing anything;
    `None` if unknown."""
    from aim import Repo, Run
    from aim.sdk.configs import get_aim_repo_name

    found = start.tracker_run_id or ""
    if not all(path.exists() for path in stored_at(folder / get_aim_repo_name(), found)):
        return False
    try:
        held = Run(found, repo=Repo.from_path(str(folder)), read_only=True).get(MARK, None) or {}
    except Exception:  # of several types
        return None
    if held.get(HELD, 0) >= last:  # also by a run that continued it
        return True
    return False if held.get("run_id", start.run_id) == start.run_id else None


def examine(folder: Path) -> Found:
    """What `folder` contains. Another process may be creating it, so a problem is checked again before it
    counts.

    Raises `OSError` when it cannot be read.
    """
    found = _look(folder)
    if found.state in ("older", "damaged"):
        time.sleep(_LOOK_AGAIN_SECONDS)
        found = _look(folder)
    return found


def _look(folder: Path) -> Found:
    from aim.sdk.configs import get_aim_repo_name
    from aim.sdk.data_version import DATA_VERSION

    path = folder / get_aim_repo_name()
    if not os.path.lexists(path):
        return Found("missing")
    if not path.is_dir():
        return Found("damaged", f"{path.name} is not a folder")
    version = path / "VERSION"
    if not version.exists():
        if not {each.name for each in path.iterdir()} <= _OF_A_NEW_ONE:
            return Found("older")
        database = path / "run_metadata.sqlite"  # Aim completes one without tables
        why = _unreadable(database, "sqlite_master") if database.exists() else ""
        return Found("damaged", why) if why else Found("unfinished")
    text = version.read_text(encoding="utf-8", errors="replace").strip()
    try:
        major = int(text.split(".")[0])
    except ValueError:
        return Found("damaged", f"its file VERSION says {text[:20]!r}")
    if major < DATA_VERSION[0]:
        return Found("older")
    why = _wrong_database(path / "run_metadata.sqlite") or _wrong_index(path / "meta" / "index")
    return Found("damaged", why) if why else Found("ready")


def _wrong_database(path: Path) -> str:
    return _unreadable(path, "run") if path.is_file() else f"{path.name} is missing"


def _unreadable(path: Path, table: str) -> str:
    try:
        # Immutable: creates neither a lock nor a journal. An active writer may make this fail, once.
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            database.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()
    except sqlite3.Error as error:
        return f"{path.name} cannot be read ({error})"
    return ""


def _wrong_index(path: Path) -> str:
    current = path / "CURRENT"
    if not path.exists():
        return ""  # created on demand
    try:
        name = current.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        return f"{path.parent.name}/{path.name}/CURRENT cannot be read ({type(error).__name__})"
    if not name.startswith("MANIFEST-") or not (path / name).is_file():
        return f"{path.parent.name}/{path.name} has lost its {name[:20]!r}"
    return ""


@contextlib.contextmanager
def id_of_a_new_run(wanted: str | None) -> Iterator[None]:
    """Make Aim give a new run this id: its `Run` only accepts the id of an existing run. If a version of Aim
    creates ids elsewhere, a process that is killed while opening a run may leave an empty one."""
    from aim.sdk import base_run

    drawn = getattr(base_run, "generate_run_hash", None)
    if wanted is None or drawn is None:
        yield
        return
    base_run.generate_run_hash = lambda: wanted
    try:
        yield
    finally:
        base_run.generate_run_hash = drawn
