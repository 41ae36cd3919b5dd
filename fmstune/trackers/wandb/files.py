"""Where W&B's SDK stores offline runs, and which run owns them. Observed with wandb 0.31.0."""

from __future__ import annotations

import glob
import json
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.trackers.continued import is_of_another, mark
from fmstune.trackers.records import RunStart, TrackerError
from fmstune.trackers.wandb.active import any_open
from fmstune.trackers.wandb.log_file import is_complete

if TYPE_CHECKING:
    import wandb

# Our files in an offline run's folder: the first exists from `open` until `close` ends, the second stays.
_LOST = ("filestream: fatal error", "filestream: json decode error", "runupserter: failed to upload")
"""The second: something else answered, such as a network's login page, which wandb-core takes for success."""
_OPEN, _OWNER = "fmstune-open", "fmstune-run.json"
_FIRST, _LAST, _SIZE, _BEFORE = "first_event", "last_event", "bytes", "last_event_before"
_SECONDS_TO_WRITE = 5.0
"""How long wandb-core may take to write the end of a file while it also serves other runs."""


class OfflineRun:
    """The file of an offline run: W&B's process keeps writing to it, even after it is renamed or removed."""

    def __init__(self, place: Path, wandb_id: str, after: int, again: list[tuple[Path, int]]) -> None:
        """`again` are complete folders, with the first event of each, whose events may or may not be
        delivered again. The run's events are those after the number `after`."""
        self._place, self._id, self._after = place, wandb_id, after
        self.lacks_earlier = False
        """Whether folders with earlier events are gone; they may have been sent. Known at the end."""
        self.artifacts = place / "artifacts"
        """Where the files of artifacts are kept for `wandb sync`."""
        self._again = again
        self._first: int | None = None
        self._last = 0
        self._file: tuple[int, int] | None = None
        self.is_there()

    @property
    def folder(self) -> Path:
        """The folder of all runs."""
        return self._place.parent

    def note(self, seq: int | None) -> None:
        """Record the event that is written next. The first one tells what is delivered again."""
        if seq is None:
            return
        self._last = max(seq, self._last)
        if self._first is not None:
            return
        self._first = seq
        for folder, first in self._again:
            if seq <= first:
                shutil.rmtree(folder)

    def end(self) -> None:
        """Record that the file is complete, its first and last event, and the last one of the folder before
        it. Raises `OSError` if W&B did not write all of it."""
        if not self.is_there():
            return
        until = time.monotonic() + (_SECONDS_TO_WRITE if any_open() else 0)
        (file,) = self._place.glob("*.wandb")
        while not is_complete(file):
            if time.monotonic() >= until:
                raise OSError(f"W&B did not write all of {file}; is there room on its disk?")
            time.sleep(0.05)
        owner = self._place / _OWNER
        said = json.loads(owner.read_text(encoding="utf-8"))
        lasts = [owner.get(_LAST) or 0 for owner in map(_owner, _places(self._place.parent, self._id))]
        before = max((last for last in lasts if last < (self._first or 0)), default=0)
        said |= {_FIRST: self._first, _LAST: self._last, _SIZE: _size(self._place), _BEFORE: before}
        owner.write_text(json.dumps(said), encoding="utf-8")
        (self._place / _OPEN).unlink(missing_ok=True)
        owners = [_owner(place) for place in _places(self._place.parent, self._id)]
        self.lacks_earlier = _lacks_some(owners, self._after)

    def is_there(self) -> bool:
        """Whether the folder still has its original file."""
        files = [path.stat() for path in self._place.glob("*.wandb")]
        found = next(((file.st_dev, file.st_ino) for file in files), None)
        self._file = self._file or found
        return found is not None and found == self._file


def begin_offline(run: wandb.Run, start: RunStart, folder: Path) -> OfflineRun:
    """Mark the folder of an offline run that was opened in `folder`.

    Raises `OSError` when the SDK created it elsewhere: if its own folder could not be created or written
    after it was checked, it uses the temporary folder, where nobody would look.
    """
    place = Path(run.dir).parent
    if not place.resolve().is_relative_to(folder.resolve()):
        run.finish(exit_code=1)
        raise OSError(
            f"W&B could not write to {folder} and went to {place}; make room there, or choose another dir"
        )
    try:
        (place / _OPEN).write_text(f"{run.id}\n{start.run_id or ''}", encoding="utf-8")
        (place / _OWNER).write_text(json.dumps(mark(start)), encoding="utf-8")
    except OSError:  # else each process would leave a folder while the disk is full
        shutil.rmtree(place, ignore_errors=True)
        run.finish(exit_code=1)
        raise
    return OfflineRun(place, run.id, start.after, _whole(folder, run.id, start) if start.redelivery else [])


def _whole(folder: Path, wandb_id: str, start: RunStart) -> list[tuple[Path, int]]:
    """A run's complete folders, with the first event of each. If a process was killed before it marked its
    folder as complete, the next one gets the events of that folder again."""
    found = []
    for place in _places(folder, wandb_id):
        said = _owner(place)
        if said.get("run_id") == start.run_id and isinstance(first := said.get(_FIRST), int):
            found.append((place, first))
    return found


def _owner(place: Path) -> dict[str, Any]:
    """What a folder records of its run; nothing if it is from an earlier version or not ours."""
    try:
        said = json.loads((place / _OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def remove_cut_off(folder: Path, start: RunStart) -> None:
    """Remove what interrupted deliveries of the run left: folders marked with both the W&B run's id and the
    run's, or named after the W&B run when a full disk kept them from being marked."""
    own = start.tracker_run_id or start.new_run_id
    for found in folder.glob(f"offline-run-*/{_OPEN}"):
        try:
            text = found.read_text(encoding="utf-8")
        except FileNotFoundError:  # of another run, which has ended meanwhile
            continue
        wandb_id, _, run_id = text.partition("\n")
        unmarked = not text and found.parent.name.endswith(f"-{own}")
        if unmarked or (wandb_id == own and run_id in ("", start.run_id)):
            shutil.rmtree(found.parent)


def is_stored(folder: Path, start: RunStart, last: int) -> bool | None:
    """Whether the offline run's folders are complete and hold this event; `None` if unknown: a missing one
    may have been sent and removed, as by `wandb sync --clean`."""
    places = _places(folder, start.tracker_run_id or "")
    owners = [_owner(place) for place in places]
    if any(owner.get("run_id") != start.run_id for owner in owners):
        return None
    if any((place / _OPEN).exists() for place in places):
        return False
    if any(
        _size(place) != owner.get(_SIZE, _size(place)) for place, owner in zip(places, owners, strict=True)
    ):
        return False
    reached = max((owner.get(_LAST, 0) for owner in owners), default=-1) >= last
    return True if reached and not _lacks_some(owners, start.after) else None


def _lacks_some(owners: list[dict[str, Any]], after: int) -> bool:
    """Whether these folders are not all that the run had: the first one, or one between them, is gone."""
    lasts = {0, *(owner.get(_LAST) or 0 for owner in owners)}
    first = min((owner.get(_FIRST) or 0 for owner in owners), default=0)
    return first > after + 1 or any(owner.get(_BEFORE, 0) not in lasts for owner in owners)


def _is_whole(place: Path) -> bool:
    return all(map(is_complete, place.glob("*.wandb")))


def _size(place: Path) -> int:
    """The bytes of a folder's file; 0 if it is gone."""
    return sum(path.stat().st_size for path in place.glob("*.wandb"))


def continued_by_another(folder: Path, start: RunStart) -> bool:
    """Whether another run has continued the W&B run offline: `wandb sync` would drop the rows of one of
    them."""
    return any(is_of_another(_owner(place), start) for place in _places(folder, start.tracker_run_id or ""))


def to_sync(run: wandb.Run) -> str:
    """The commands that send the run's folders, in the order of their events. A single command would send
    them in the order of their start times: after the clock was set back, the last values would be old ones,
    and W&B would drop the rows of the earlier folders."""
    place = Path(run.dir).parent
    firsts = {
        each: _owner(each).get(_FIRST) for each in {*_places(place.parent, run.id), place}
    }  # the newest has none yet
    places = sorted(firsts, key=lambda each: (firsts[each] is None, firsts[each] or 0, each))
    return " && ".join(f"wandb sync {shlex.quote(str(each))}" for each in places)


def _places(folder: Path, wandb_id: str) -> list[Path]:
    """The folders of a W&B run, without those that a killed process did not begin completely."""
    name = f"offline-run-*-{glob.escape(wandb_id)}"
    # A second one within the same second gets a number after the id.
    found = sorted({*folder.glob(name), *folder.glob(f"{name}-[0-9]*")})
    return [place for place in found if _owner(place) or _is_whole(place)]


def wait_for_core() -> None:
    """Wait until wandb-core has written everything and ended, unless another run still needs it.

    `finish` returns up to 50 ms before the end of an offline file is written: of 40 runs of 400 rows
    read at once, one lacked its last rows. The SDK itself waits only when the process ends.
    """
    import wandb

    if any_open():
        return
    try:
        wandb.teardown()
    except SystemExit as error:  # so the SDK passes on an exit code of wandb-core
        raise TrackerError(f"W&B's process wandb-core failed with exit code {error.code}.") from None


def lost_upload(log: Path) -> str | None:
    """The error that ended the upload, from the log of wandb-core; `None` if everything was accepted.

    After a 401 or 403 mid-run, `finish` returns at once without an error although nothing was sent; only
    this log reports it.
    """
    if not log.exists():
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    fatal = next((line for line in lines if any(words in line for words in _LOST)), None)
    if fatal is None:
        return None
    status = re.search(r"(?:upload: |returned error )(\d{3})", fatal)
    return f"its upload ended with {f'HTTP {status[1]}' if status else 'an error'}, see {log}"
