"""The tracker `aim`: an Aim repository on this machine, or a remote one behind `aim server`."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.trackers.aim.checks import check_folder, check_server
from fmstune.trackers.aim.connection import Connection
from fmstune.trackers.aim.media import aim_object, log_files
from fmstune.trackers.aim.repository import HELD, id_of_a_new_run, index, is_stored, repository, storage_of
from fmstune.trackers.continued import MARK, is_of_another, mark, note
from fmstune.trackers.records import (
    Artifact,
    Check,
    Limits,
    Media,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerError,
    TrackerRun,
    merged,
    utf8,
)
from fmstune.trackers.values.occurrences import Occurrences
from fmstune.trackers.whole_points import WholePointTracker

# Steps and repeats together fit the 53 bits of a floating-point number. A repeat stays below one half,
# the key's fraction for values without a step.
_REPEAT = 2.0**-20
_MOST_REPEATS = 2**19
_LAST_STEP = 2**32
_KNOWN_SECONDS = 1.2
"""Aim 3.29.1 reads its runs from a list that is up to 0.5 s old, and its server from another one: a run
that was created and closed just now is missing there, and would be created a second time."""
_ARTIFACTS = "aim-artifacts"
"""The folder for files, next to `.aim`, whose contents are private to Aim."""


@dataclass(frozen=True)
class AimOptions:
    """Options of the tracker `aim`."""

    repo: str | None = field(
        default=None,
        metadata={
            "help": "Path of the Aim repository, or aim://host:port of an `aim server`. "
            "Default: Aim's own, the nearest .aim from here upwards, created here when absent."
        },
    )
    experiment: str | None = field(default=None, metadata={"help": "Name of the experiment; else run.group."})
    run_name: str | None = field(
        default=None, metadata={"help": "Name of the run in Aim. Default: the run's own name."}
    )
    tags: tuple[str, ...] = field(default=(), metadata={"help": "Tags of the run; else run.tags."})


def install_hint(python: tuple[int, int]) -> str:
    """How to install Aim on a version of Python. Its releases so far (3.29) need extensions that exist for up
    to 3.12 only, so that `pip install aim` fails later or installs a release that is years old."""
    if python > (3, 12):
        return "Aim runs on Python 3.12 and older: create an environment with one and pip install fmstune aim"
    return "pip install aim"


class AimStackTracker(WholePointTracker):
    """Track metrics under their name with the context `{"subset": stage}`; params stay nested.

    Aim keys values by a hash of their step. So a step that is logged again after a resume replaces the old
    value, and several values of a metric at one step need separate keys: the second one's is the step plus
    2**-20. Aim's SDK and UI show steps as integers, so both appear at the same step (seen with 3.29.1).
    """

    registered_name = "aim"
    description = "Aim, in a local repository or on an aim server"
    package = "aim"
    install_hint = install_hint(sys.version_info[:2])
    idempotent = True
    repeated_steps = "replaced"
    places = (("repo",),)
    takes_artifacts = True
    media = frozenset({"text", "image", "histogram"})
    Config = AimOptions
    config: AimOptions
    # Found by fuzzing Aim 3.29.1. It raises on a metric that is not a number. Beyond 64 bits it raises in
    # the middle of a write, and it accepts an empty name: after either, its SDK cannot read the run any
    # more. The two params are those that `close` sets. A sequence holds either numbers or texts.
    limits = Limits(integer_bits=64, one_series=True, reserved_params=frozenset({"status", "error", MARK}))

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._run: Any = None
        self._alone = Occurrences()
        self.takes_artifacts = "://" not in (self.config.repo or "")  # its server accepts no files
        self._indexes = True  # unless `aim up` turns out to do it
        self._storage: tuple[Path, ...] = ()
        self._files: list[tuple[int, int] | None] = []
        self._connection: Connection | None = None
        self._counted = False
        self._held = self._last = 0  # the last event that the run records as stored, and the actual one
        self._pid = os.getpid()

    def open(self, start: RunStart) -> TrackerRun:
        from aim import Repo

        where = self._repo()
        self._pid = os.getpid()
        if self._run is not None:  # opened by `open_alone`
            self._run.name = utf8(self.config.run_name or start.name)
            return TrackerRun(self._run.hash, where)
        remote = "://" in where
        repo = Repo.from_path(where) if remote else repository(where)
        self._run, noted = self._opened_run(repo, start), None
        self._alone = Occurrences()
        if start.run_id is not None:
            if is_of_another(self._run.get(MARK, None), start):
                self._run.close()
                noted = note(start)
                self._run = self._opened_run(
                    repo, dataclasses.replace(start, tracker_run_id=None, new_run_id=None)
                )
            held = (self._run.get(MARK, None) or {}).get(HELD)
            self._run[MARK] = mark(start) | ({} if held is None else {HELD: held})
            self._held = self._last = held or 0
            self._counted = held is not None  # else it is new, or an earlier version wrote it
            self._connection = Connection(repo) if remote else None
        self._run.name = utf8(self.config.run_name or start.name)
        if start.notes:
            self._run.description = utf8(start.notes)
        for tag in self.config.tags or start.tags:
            if tag:
                self._run.add_tag(utf8(tag))
        self._storage = () if remote else storage_of(self._run)
        self._files = [_identity(path) for path in self._storage]
        return TrackerRun(self._run.hash, where, note=noted)

    def holds(self, last: int) -> bool:
        # Aim keeps writing to its open files, even after they are renamed or removed.
        if None in self._files or [_identity(path) for path in self._storage] != self._files:
            return False
        if self._run is None:
            return True
        if not self._storage:  # nothing is lost behind a server while the connection lasts
            return not self._counted or self._last >= last
        found = self._run.get(MARK, None) or {}
        # Without it, an earlier version wrote the run.
        return bool(found.get(HELD, last) >= last)

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        if "://" in (where := self._repo()) or start.tracker_run_id is None:
            return None
        return is_stored(Path(where), start, last)

    def _note_event(self) -> None:
        """Record the last event that the run holds, so that an older state of it is recognised. `flush`
        writes it into the run: as much work for Aim as a metric."""
        self._last = max(self._last, self.seq or 0)

    def _opened_run(self, repo: Any, start: RunStart) -> Any:
        from aim import Run
        from aim.sdk.errors import MissingRunError

        # log_system_params would send the environment variables, and fails without pkg_resources
        # (aimhubio/aim#2858); system metrics would be those of this process, not of the training.
        options: dict[str, Any] = {
            "repo": repo,
            "experiment": self.config.experiment or (start.group and utf8(start.group)),
            "system_tracking_interval": None,
            "log_system_params": False,
            "capture_terminal_logs": False,
        }
        if (wanted := start.tracker_run_id or start.new_run_id) is None:
            return Run(**options)
        for last in (start.tracker_run_id is None, True):
            try:
                return Run(wanted, force_resume=True, **options)
            except MissingRunError:
                if last:  # a new one, or it or the whole repository was removed
                    break
                time.sleep(_KNOWN_SECONDS)
        with id_of_a_new_run(start.new_run_id):
            return Run(**options)

    def track_point(self, point: MetricPoint) -> None:
        values, stage = self._fitted_or_own(point)
        context = _context(stage)
        if point.repeats is not None and not point.repeats:  # one call per value takes Aim longer
            step = _key(point.step, 0)
            self._opened.track(dict(values), step=step, epoch=point.epoch, context=context)
            self._note_event()
            return
        for name, value in values.items():
            if point.repeats is None:
                repeat = self._alone.count((stage, name), point.step)
            else:
                repeat = point.repeats.get(name, 0)
            step = _key(point.step, repeat)
            self._opened.track(value, name=name, step=step, epoch=point.epoch, context=context)
        self._note_event()

    def track_table(self, table: Table) -> None:
        from aim import Text

        repeat = table.repeats
        if repeat is None:
            repeat = self._alone.count(("a table", table.stage, table.name), table.step)
        lines = [Text("\n".join(f"{name}: {value}" for name, value in row.items())) for row in table.rows]
        # In a sequence of texts, the step itself is the key and must be an integer: a further table of the
        # same step goes to its own sequence.
        context = _context(table.stage) | ({"occurrence": repeat + 1} if repeat else {})
        lines = lines or [Text("(no rows)")]  # Aim cannot tell that an empty list is one of texts
        self._opened.track(lines, name=table.name, step=table.step or 0, epoch=table.epoch, context=context)
        self._note_event()

    def track_media(self, media: Media) -> None:
        repeat = media.repeats
        if repeat is None:
            repeat = self._alone.count((media.kind, media.stage, media.name), media.step)
        context = _context(media.stage) | ({"occurrence": repeat + 1} if repeat else {})
        where = {"step": media.step or 0, "epoch": media.epoch, "context": context}
        self._opened.track(aim_object(media), name=media.name, **where)
        self._note_event()

    def track_artifact(self, artifact: Artifact) -> None:
        log_files(self._opened, artifact, Path(self._repo()) / _ARTIFACTS)
        self._note_event()

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        namespace, params = self._fitted_params(params, name)
        # Aim replaces what is set: a standalone tracker, or a delivery of a run that continues another
        # run's Aim run, knows only a part of the namespace.
        self.flush()
        held = self._opened.get(namespace, {})
        self._opened[namespace] = merged(held, params)
        self._note_event()

    def flush(self) -> None:
        if self._last > self._held and (self._storage or self._connection):
            self._opened[MARK, HELD] = self._held = self._last
        # Aim sends to a server from a background queue; its end is the only sign that the server has received
        # everything. A local repository writes through.
        if self._connection is not None:
            self._connection.wait()
        elif self._opened.repo.is_remote_repo:
            self._opened.repo._client.get_queue().wait_for_finish()

    def appear(self) -> None:
        # Aim shows new values of an indexed run as they come, but only for metrics known to the index.
        if self._indexes and not self._opened.repo.is_remote_repo:
            self._indexes = index(self._opened, seconds=0.5)

    def train_ended(self, status: Status) -> None:
        self._opened["status"] = status
        self.flush()
        if not self._opened.repo.is_remote_repo:
            index(self._opened)

    def close(self, status: Status, error: str | None = None) -> None:
        if self._run is None:
            return
        self.flush()
        self._run["status"] = status
        if error is not None:
            self._run["error"] = utf8(error)
        run, self._run = self._run, None
        run.close()
        if not run.repo.is_remote_repo:
            index(run)

    def check(self, timeout: float) -> Check:
        where = self._repo()
        if "://" in where:
            return check_server(where, timeout, f"trackers.{self.name}.repo")
        return check_folder(Path(where), f"--set trackers.{self.name}.repo=PATH")

    def _repo(self) -> str:
        from aim import Repo
        from aim.sdk.utils import clean_repo_path

        if self.config.repo is not None:
            return self.config.repo if "://" in self.config.repo else clean_repo_path(self.config.repo)
        return str(Repo.default_repo_path())

    @property
    def _opened(self) -> Any:
        if self._run is None:
            self._pid = os.getpid()
            self.open_alone()
        elif os.getpid() != self._pid:  # its files are then shared with the parent, and nothing arrives
            raise TrackerError(
                f"The Aim run was opened by process {self._pid}, and Aim loses what a forked child tracks; "
                "track in that process."
            )
        return self._run


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _context(stage: str | None) -> dict[str, Any]:
    return {} if stage is None else {"subset": stage}


def _key(step: int | None, repeat: int) -> int | float:
    """The step under which Aim stores a value that follows `repeat` others of its metric at that step."""
    if step is None:  # Aim would keep counting, and duplicate what is delivered again
        return repeat + 0.5
    if repeat == 0:
        return step
    if repeat >= _MOST_REPEATS or abs(step) >= _LAST_STEP:
        raise TrackerError(f"Aim has no room for a further value of the metric at step {step}")
    return step + repeat * _REPEAT
