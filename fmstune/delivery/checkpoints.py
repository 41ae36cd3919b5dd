"""The models of checkpoints, handed to the trackers beside the training: what takes long is in a thread.

The training's own thread gives each file a second name beside the journal, which takes no time, and keeps it
when the checkpoint is rotated away. The thread reads the files, as their folder is called after their
content, and records them. A folder that a process has left behind, since it was killed before that, is
recorded by the one that resumes the run.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.delivery.handed_over import folders, give_back
from fmstune.delivery.journal.files import Stopped, files_in, linked, settled
from fmstune.delivery.recorder import Recorder
from fmstune.layout import FILES_DIR
from fmstune.text import counted

_LEFT = re.compile(r"\.(checkpoint-(\d+))\.(linking|pending)")


@dataclass(frozen=True, slots=True)
class _Linked:
    """The files of a checkpoint in a folder of the store. `copies` are open files that no link could be made
    of: what is open stays readable when its last name is removed."""

    checkpoint: str
    step: int
    type: str
    folder: Path
    copies: tuple[tuple[str, int], ...] = ()


class HandedCheckpoints:
    """The checkpoints of the run in `directory` that its trackers get, in the order in which they are
    saved."""

    def __init__(
        self,
        directory: Path,
        trackers: Collection[str],
        recorder: Recorder,
        say: Callable[[str, str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._directory, self._trackers = directory, trackers
        self._recorder, self._say, self._warn = recorder, say, warn
        self._store = recorder.journal.path.parent / FILES_DIR
        self._queue: queue.SimpleQueue[_Linked | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._copies_said = False

    def add(self, checkpoint: Path, files: Mapping[str, Path], step: int, type: str) -> None:
        """Hand over files of a checkpoint, by the names that they are to have; returns at once. What the disk
        does not allow is recorded and said: the training continues."""
        try:
            made = self._linked(checkpoint.name, files, step, type)
        except OSError as error:
            self._lost(checkpoint.name, step, type, error.strerror or str(error))
            return
        if made.copies and not self._copies_said:
            self._copies_said = True
            self._warn(
                f"no hard link can be made of {checkpoint} in {self._store}: the models of checkpoints are "
                "copied for the trackers, and take their size twice until they are delivered"
            )
        self._begin(made)

    def take_up(self, type: str) -> set[str]:
        """Hand over what an earlier process of this run has left behind; the names of the checkpoints that
        are handed over."""
        with contextlib.suppress(OSError):
            done = {str(event.item.get("from")) for event in folders(self._recorder.journal.path)}
            for folder in sorted(self._store.glob(".checkpoint-*")):
                if (left := _LEFT.fullmatch(folder.name)) is None:
                    continue
                if left[3] == "pending":
                    done.add(left[1])
                    self._begin(_Linked(left[1], int(left[2]), type, folder))
                else:  # cut off: it may have been of a checkpoint that was saved once more
                    done.discard(left[1])
                    shutil.rmtree(folder, ignore_errors=True)
            return done
        return set()

    def end(self, seconds: float | None) -> None:
        """Wait until all is recorded: it is read from this machine's own disk. At most so many seconds, after
        which the rest is left to the process that resumes the run."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(seconds)
        self._stopped = True
        self._thread.join()  # which ends after the next megabyte
        self._thread = None

    def _begin(self, made: _Linked) -> None:
        self._queue.put(made)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="checkpoints")
            self._thread.start()

    def _linked(self, name: str, files: Mapping[str, Path], step: int, type: str) -> _Linked:
        folder, whole = self._store / f".{name}.linking", self._store / f".{name}.pending"
        for left in (folder, whole):
            shutil.rmtree(left, ignore_errors=True)
        folder.mkdir(parents=True)
        copies: list[tuple[str, int]] = []
        try:
            for each, source in files.items():
                path = folder / each
                path.parent.mkdir(parents=True, exist_ok=True)
                if not linked(source, path):
                    copies.append((each, os.open(source, os.O_RDONLY | os.O_CLOEXEC)))
            if not copies:
                folder.rename(whole)
        except OSError:
            for _, file in copies:
                os.close(file)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return _Linked(name, step, type, folder if copies else whole, tuple(copies))

    def _work(self) -> None:
        while (made := self._queue.get()) is not None:
            try:
                self._record(made)
            except Stopped:
                there = f", from {made.checkpoint} if that is there then" if made.copies else ""
                self._warn(f"{made.checkpoint} is handed to the trackers when the run is resumed{there}")
            except Exception as error:  # a thread that ended here would keep all later checkpoints back
                shutil.rmtree(made.folder, ignore_errors=True)
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._lost(made.checkpoint, made.step, made.type, why or type(error).__name__)

    def _record(self, made: _Linked) -> None:
        for number, (name, file) in enumerate(made.copies):
            try:
                with os.fdopen(file, "rb") as source, (made.folder / name).open("wb") as copy:
                    self._copy(source, copy)
            except BaseException:
                for _, other in made.copies[number + 1 :]:
                    os.close(other)
                raise
        names = files_in(made.folder)
        item = settled(self._store, made.folder, lambda: not self._stopped)
        shutil.rmtree(made.folder, ignore_errors=True)  # of the same content as one before
        item = {"type": made.type, **item, "from": made.checkpoint, "names": names}
        self._recorder.record_files(made.checkpoint, made.step, item)
        size = f"{item['size'] / 1e6:.1f} MB"
        self._say("artifact", f"{made.checkpoint}: {counted(item['files'], 'file')}, {size}")
        give_back(self._directory, self._trackers)

    def _copy(self, source: Any, copy: Any) -> None:
        while block := source.read(1 << 20):
            if self._stopped:
                raise Stopped
            copy.write(block)

    def _lost(self, name: str, step: int, type: str, why: str) -> None:
        self._warn(f"the {type} of {name} is not handed to trackers: {why}")
        self._recorder.record_files(name, step, {"type": type, "lost": why})
