"""Deliver the models of checkpoints to the trackers while training continues; a thread does the slow part.

The training thread hard-links each file next to the journal, which takes no time and keeps it when the
checkpoint is rotated out. The thread reads the files, as their folder is named after their content, and
records them. If a process is killed before that, the one that resumes the run records the folder it left.
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

from fmstune.delivery.delivered_files import folders, release_links
from fmstune.delivery.journal.files import Stopped, files_in, named_by_content
from fmstune.delivery.recorder import Recorder
from fmstune.layout import FILES_DIR
from fmstune.system.files import linked, rename_folder
from fmstune.text import counted

_LEFT = re.compile(r"\.(checkpoint-(\d+))\.(linking|pending)")


@dataclass(frozen=True, slots=True)
class _Linked:
    """The files of a checkpoint in a folder of the store. `copies` are open files that could not be linked:
    an open file stays readable after its last name is removed."""

    checkpoint: str
    step: int
    type: str
    folder: Path
    copies: tuple[tuple[str, int], ...] = ()


class CheckpointDelivery:
    """The checkpoints of the run in `directory` that are passed to its trackers, in the order in which they
    were saved."""

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
        """Pass on files of a checkpoint under the given names; return at once. If the disk does not allow it,
        that is recorded and reported: the training continues."""
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

    def resume_pending(self, type: str) -> set[str]:
        """Pass on what an earlier process of this run left behind; return the names of the checkpoints that
        are passed on."""
        with contextlib.suppress(OSError):
            done = {str(event.item.get("from")) for event in folders(self._recorder.journal.path)}
            for folder in sorted(self._store.glob(".checkpoint-*")):
                if (left := _LEFT.fullmatch(folder.name)) is None:
                    continue
                if left[3] == "pending":
                    done.add(left[1])
                    self._begin(_Linked(left[1], int(left[2]), type, folder))
                else:  # interrupted: the checkpoint may have been saved again
                    done.discard(left[1])
                    shutil.rmtree(folder, ignore_errors=True)
            return done
        return set()

    def end(self, seconds: float | None) -> None:
        """Wait until everything is recorded: it is read from a local disk. Waits at most this many seconds;
        the process that resumes the run does the rest."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(seconds)
        self._stopped = True
        self._thread.join()  # it ends after the next megabyte
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
                rename_folder(folder, whole)
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
                self._warn(f"{made.checkpoint} is passed to the trackers when the run is resumed{there}")
            except Exception as error:  # a thread that ended here would hold up all later checkpoints
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
        item = named_by_content(self._store, made.folder, lambda: not self._stopped)
        shutil.rmtree(made.folder, ignore_errors=True)  # the same content as an earlier one
        item = {"type": made.type, **item, "from": made.checkpoint, "names": names}
        self._recorder.record_files(made.checkpoint, made.step, item)
        size = f"{item['size'] / 1e6:.1f} MB"
        self._say("artifact", f"{made.checkpoint}: {counted(item['files'], 'file')}, {size}")
        release_links(self._directory, self._trackers)

    def _copy(self, source: Any, copy: Any) -> None:
        while block := source.read(1 << 20):
            if self._stopped:
                raise Stopped
            copy.write(block)

    def _lost(self, name: str, step: int, type: str, why: str) -> None:
        self._warn(f"the {type} of {name} is not passed to trackers: {why}")
        self._recorder.record_files(name, step, {"type": type, "lost": why})
