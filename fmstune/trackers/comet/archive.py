"""An offline experiment: archives in the format of Comet's own, for `comet upload`.

`OfflineExperiment` writes its archive when it ends, from a temporary folder: after a kill, nothing can be
found. Here, the parts of the archive lie next to it until then, and the next process continues with them. A
resumed run has a second archive, which goes into the same experiment, like those of
`ExistingOfflineExperiment`. The SDK's behaviour was observed with comet_ml 3.58.8.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import re
import shlex
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.system.files import replace_text
from fmstune.trackers.comet.items import Asset, Events, Item, Other, Point
from fmstune.trackers.comet.settings import CometUnusable, Settings
from fmstune.trackers.records import RunStart, Status
from fmstune.trackers.unusable import require_writable

_STATE, _MESSAGES = "fmstune.json", "messages.json"


@dataclass
class State:
    """The state of an archive, in our own file in it: its owner, the events of the run that it and those
    before it hold, the length of its messages at that point, its final status, and its contents."""

    mark: dict[str, Any] = field(default_factory=dict)
    spans: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0
    begun: int = 0
    strategy: str = "create"
    ended: list[str | None] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)


def newest_state(folder: Path, key: str) -> State | None:
    """The state of the experiment's newest archive, finished or not."""
    parts = _parts(folder, key)
    return _state_of(folder, key, max(parts)) if parts else None


def is_stored(folder: Path, key: str, run_id: str | None, last: int) -> bool | None:
    """Whether the newest archive holds this event of the run. A missing one may have been sent."""
    state, parts = newest_state(folder, key), _parts(folder, key)
    if state is None or state.mark.get("run_id") != run_id:
        return None
    if Events(state.spans).last < last:
        return False
    return True if len(parts) == max(parts) else None


class Archive:
    """The archives of one experiment; the newest one is written to. Raises `OSError`, after which a failed
    write is undone."""

    page: str | None = None

    def __init__(self, settings: Settings, key: str, start: RunStart, mark: dict[str, Any]) -> None:
        require_writable(settings.folder, CometUnusable)
        self.key = key
        self._folder, self._settings = settings.folder, settings
        parts = _parts(self._folder, key)
        newest = _state_of(self._folder, key, max(parts)) if parts else None
        self._number = max(parts, default=1)
        # The newest finished archive, and whether there is an unfinished one.
        self._done = self._zip if self._zip.exists() else None
        self._in_hand = newest is not None and self._done is None
        state = newest or State()
        if not self._in_hand:
            # From a process that was killed when an archive was finished, or before its state was written.
            shutil.rmtree(self._staging, ignore_errors=True)
            known = start.tracker_run_id is not None or settings.experiment is not None
            state.strategy = "get_or_create" if known else "create"
        if state.mark.get("run_id") != mark.get("run_id"):
            state.spans = []  # the run that this one continues has other numbers
        state.mark = mark
        self._state, self._lost, self._missing = state, False, False
        # Archives may have been sent and removed since.
        self._unseen = start.tracker_run_id is not None and newest is None and not start.redelivery
        if self._in_hand:
            self._truncate_partial()
            self._note_state()

    @property
    def adapted(self) -> str | None:
        """What was delivered but is missing from the archives."""
        where = f"{self._folder} no longer has the archives with its earlier events"
        return f"{where}; the new one is without them" if self._missing else None

    @property
    def note(self) -> str:
        """What is left for the user to do."""
        done = sorted(_zips(self._folder, self.key), key=_number_of)
        last = self._archive(self._number + (self._done is not None))
        paths = " ".join(shlex.quote(str(path)) for path in dict.fromkeys([*done, last]))
        return f"offline, send it with `comet upload {paths}`"

    @property
    def events(self) -> Events:
        """The stored events."""
        return Events(self._state.spans)

    @property
    def params(self) -> dict[str, str]:
        """The stored params."""
        return dict(self._state.params)

    @property
    def counts(self) -> dict[str, int]:
        """The number of points of each metric."""
        return dict(self._state.points)

    def holds(self, last: int) -> bool:
        """Whether what was written is still there, with the event of this number or a later one."""
        if self._lost:
            return False
        if not self._in_hand:
            return (self._done is None or self._done.exists()) and self._reaches(last)
        try:
            found = _read(self._staging / _STATE)
            size = (self._staging / _MESSAGES).stat().st_size
        except OSError:
            return False
        own = found is not None and (found.spans, found.size) == (self._state.spans, self._state.size)
        return own and size >= self._state.size and self._reaches(last)

    def write(self, items: list[Item], events: Sequence[int]) -> None:
        """Add the items, which belong to these events, and remove them from `items`."""
        if not self._in_hand:
            self._begin()
        elif not self.holds(0):
            # It was removed or restored to an older state. Writing now would hide that.
            self._lost = True
            items.clear()
            return
        before = dataclasses.replace(
            self._state, params=dict(self._state.params), points=dict(self._state.points)
        )
        try:
            held = self.events
            for seq in events:
                held.add(seq)
            self._state.spans = held.spans
            self._add(items)
            self._note_state()
        except BaseException:
            self._state = before
            with contextlib.suppress(OSError):  # then the next process does it
                self._truncate_partial()
            raise
        items.clear()

    def end(self, status: Status, error: str | None, others: list[Item], tags: Sequence[str]) -> None:
        """Finish the archive, unless the existing one already has everything."""
        ended = [status, error]
        if self._done is not None and not self._in_hand and self._state.ended == ended:
            return
        self._state.ended = ended
        self.write(others, ())
        if self._lost:
            return
        self._describe(status, error, tags)
        temporary = self._zip.with_suffix(".tmp")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as made:
            for path in sorted(self._staging.iterdir()):
                made.write(path, path.name)
        temporary.replace(self._zip)
        self._in_hand, self._done = False, self._zip
        shutil.rmtree(self._staging, ignore_errors=True)  # else the next process does it

    # -- the rest -----------------------------------------------------------------------------

    @property
    def _staging(self) -> Path:
        return self._folder / f".{self.key}-{self._number}"

    @property
    def _zip(self) -> Path:
        return self._archive(self._number)

    def _archive(self, number: int) -> Path:
        return self._folder / f"{self.key}-{number}.zip"

    def _reaches(self, last: int) -> bool:
        self._missing = self._missing or (self._unseen and last > 0)
        return self._unseen or not self._state.mark or self.events.last >= last

    def _begin(self) -> None:
        """Start an archive: the first one, or the one after the finished one."""
        if self._done is not None:
            self._number += 1
            self._state.strategy = "get"
        self._state.size, self._state.begun = 0, _now()
        self._staging.mkdir(parents=True, exist_ok=True)
        (self._staging / _MESSAGES).touch()
        self._note_state()
        self._in_hand = True

    def _note_state(self) -> None:
        replace_text(self._staging / _STATE, json.dumps(vars(self._state)))

    def _add(self, items: Sequence[Item]) -> None:
        from comet_ml.messages import UploadFileMessage

        lines = []
        for item in items:
            if isinstance(item, Asset):
                path = self._keep(item)
                message = UploadFileMessage(
                    path.name, item.kind, item.params(), dict(item.metadata), path.stat().st_size
                )
            else:
                message = item.message()
            lines.append(json.dumps({"type": message.type, "payload": _payload(message)}) + "\n")
            if isinstance(item, Point):
                self._state.points[item.name] = self._state.points.get(item.name, 0) + 1
            elif not isinstance(item, (Asset, Other)):
                self._state.params[item.name] = item.value
        with (self._staging / _MESSAGES).open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self._state.size = (self._staging / _MESSAGES).stat().st_size

    def _keep(self, asset: Asset) -> Path:
        suffix = re.sub(r"[^a-zA-Z0-9]", "", asset.extension)[:20]
        path = self._staging / (f"{asset.id}.{suffix}" if suffix else asset.id)
        if isinstance(asset.content, Path):
            shutil.copyfile(asset.content, path)
        else:
            path.write_bytes(asset.content)
        return path

    def _truncate_partial(self) -> None:
        """Truncate what a killed process may have written beyond the state."""
        messages = self._staging / _MESSAGES
        if messages.exists() and messages.stat().st_size > self._state.size:
            os.truncate(messages, self._state.size)

    def _describe(self, status: Status, error: str | None, tags: Sequence[str]) -> None:
        from comet_ml.offline_utils import write_experiment_meta_file

        write_experiment_meta_file(
            tempdir=str(self._staging), experiment_key=self.key, workspace=self._settings.workspace,
            project_name=self._settings.project, start_time=self._state.begun, stop_time=_now(),
            tags=list(tags), resume_strategy=self._state.strategy,
            customer_error_reported=status != "finished",
            customer_error_message=None if status == "finished" else error or status,
            user_provided_experiment_key=True,
        )  # fmt: skip


def _payload(message: Any) -> dict[str, Any]:
    """What the SDK writes for a message, without the number that its own queue assigns."""
    said = message.to_message_dict()
    return {key: value for key, value in said.items() if key != "message_id"}


def _zips(folder: Path, key: str) -> list[Path]:
    return [path for path in folder.glob(f"{glob.escape(key)}-*.zip") if _number_of(path)]


def _number_of(path: Path) -> int:
    found = re.search(r"-(\d+)(\.zip)?$", path.name)
    return int(found[1]) if found else 0


def _parts(folder: Path, key: str) -> set[int]:
    """The numbers of the finished and unfinished archives."""
    staged = [path for path in folder.glob(f".{glob.escape(key)}-*") if _read(path / _STATE) is not None]
    return {number for path in [*_zips(folder, key), *staged] if (number := _number_of(path))}


def _state_of(folder: Path, key: str, number: int) -> State | None:
    try:
        with zipfile.ZipFile(folder / f"{key}-{number}.zip") as made:
            return _state(made.read(_STATE))
    except FileNotFoundError:
        return _read(folder / f".{key}-{number}" / _STATE)
    except (KeyError, zipfile.BadZipFile):  # not ours, or damaged
        return None


def _read(path: Path) -> State | None:
    try:
        return _state(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _state(text: bytes) -> State | None:
    try:
        found = State(**json.loads(text))
        found.spans = [(first, last) for first, last in found.spans]
    except (ValueError, TypeError):
        return None
    return found


def _now() -> int:
    return int(1000 * time.time())
