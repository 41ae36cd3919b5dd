"""Upload the files of a run to the trackers that store files: `tracking.artifacts`."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.delivery.artifacts import record
from fmstune.delivery.checkpoints import CheckpointDelivery
from fmstune.delivery.recorder import Recorder
from fmstune.launch.environment import is_main_process
from fmstune.layout import NAMED_TEMPLATES
from fmstune.models.checkpoints import checkpoints, step_of
from fmstune.run.directory import RunDirectory, run_files
from fmstune.text import counted
from fmstune.training.build import BuiltTrainer

_LEFT_OUT = ("training_args.bin", "report.html", "skipped_rows.jsonl", "stream_counts")
"""Files that only matter on this machine, and the report, which is written after everything is delivered."""
_WEIGHTS = (".safetensors", ".bin")


class Artifacts:
    """Uploads the files chosen by `tracking.artifacts`, on rank zero: the model or adapter of each
    checkpoint, including those that an earlier process of the run did not reach, and finally the results of
    the run."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        recorder: Recorder,
        out: RunConsole,
        built: BuiltTrainer,
    ) -> None:
        self._wanted, self._directory, self._step = config.tracking.artifacts, directory.path, directory.step
        self._recorder, self._out = recorder, out
        self._kind = "adapter" if built.adapter else "model"
        trackers = [name for name in config.tracking.trackers if name != "none"]
        self._each = self._wanted == "checkpoints" and bool(trackers) and is_main_process()
        self._checkpoints = CheckpointDelivery(self._directory, trackers, recorder, out.say, out.warn)
        self._begin()

    def _begin(self) -> None:
        """Start with the existing checkpoints, if the run resumes."""
        if is_main_process():
            break_links(self._directory, self._step)
        done = self._checkpoints.resume_pending(self._kind) if self._each else set()
        for checkpoint in reversed(checkpoints(self._directory)):
            if step_of(checkpoint) <= self._step and checkpoint.name not in done:
                self.add(checkpoint)

    def add(self, checkpoint: Path) -> None:
        """Upload a complete checkpoint."""
        if not self._each:
            return
        files = _files(checkpoint)
        if any(name.endswith(_WEIGHTS) for name in files):
            self._checkpoints.add(checkpoint, files, step_of(checkpoint), self._kind)
        else:  # the states of FSDP and DeepSpeed fit this number of processes, and are not a model
            self._out.warn(
                f"{checkpoint.name} is not uploaded to trackers: it has no complete model or adapter"
            )

    def end(self, seconds: float | None = None) -> None:
        """Wait until all checkpoints are recorded: see `CheckpointDelivery`."""
        self._checkpoints.end(seconds)

    def finish(self) -> None:
        """Upload the model or adapter, with its configuration and its card. The files are linked, not copied:
        a later run in this directory deletes them before it writes its own."""
        self.end()
        if self._wanted == "none":
            return
        kind, out = self._kind, self._out
        item = record(self._recorder, _files(self._directory), kind, kind, link=True)
        if "lost" in item:
            out.warn(f"the {kind} is not uploaded to trackers: {item['lost']}")
        else:
            out.say("artifact", f"{kind}: {counted(item['files'], 'file')}, {item['size'] / 1e6:.1f} MB")


def break_links(directory: Path, step: int) -> None:
    """Replace hard links to uploaded files by copies, in a run that resumes at a step: the Trainer writes
    into the existing files when it saves a model or checkpoint again."""
    later = [each for each in checkpoints(directory) if step_of(each) > step]
    for name, path in (pair for folder in (directory, *later) for pair in _files(folder).items()):
        with contextlib.suppress(OSError):  # files are hashed again before they are delivered
            if path.stat().st_nlink > 1:
                copy = path.with_name(f".{name}.parted")
                shutil.copy2(path, copy)
                copy.replace(path)


def _files(folder: Path) -> dict[str, Path]:
    # Unlike `Path.is_file`, it raises for no folder that fails: one of trackers is in the way of nothing.
    found = [each for each in run_files(folder) if each.name not in _LEFT_OUT and os.path.isfile(each)]  # noqa: PTH113
    found += (folder / NAMED_TEMPLATES).glob("*.jinja")
    return {str(each.relative_to(folder)): each for each in found if each.suffix != ".log"}
