"""Atomic checkpoints, written in the background.

The contents of a checkpoint are copied between two steps, and a thread writes the copy while training
continues: training waits only for the copy. Once all files are on the disk, one rename moves them into place.
The next checkpoint and the end of training wait for the thread, and its errors stop training at the next
step.

A checkpoint that is read at once, and the last one, including that of a signal, are written in the
foreground. So are those of several processes, which the thread then only flushes to the disk. Older
checkpoints are removed once a power cut would not damage the new one.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fmstune.delivery.guarded_callback import acts_on_save
from fmstune.errors import Interrupted, RunError
from fmstune.models import unfinished
from fmstune.models.saving import share_weights
from fmstune.training.trainers.copy_room import CopyRoom, held
from fmstune.training.trainers.disk import cause_of, not_written, sizes
from fmstune.training.trainers.finite_weights import several_processes
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.trl_compat.saving import (
    FileLater,
    copy_parts,
    remove_old_checkpoints,
    without_removal,
    write_parts,
)
from fmstune.training.tuned_trainer import OfRun, TunedTrainer, as_trainer


class _Abandoned(Exception):
    """The checkpoint was abandoned: training ended without waiting for it."""


class _Writing(threading.Thread):
    """A checkpoint that is being written: `write` creates its files, `place` gives them their name, and
    `settle` is what remains then; without `write`, it has its name. `failure` is its error, if it failed."""

    def __init__(
        self,
        name: str,
        settle: Callable[[], None],
        write: Callable[[], None] | None = None,
        place: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(daemon=True, name=f"writing {name}")
        self.checkpoint = name
        self.failure: BaseException | None = None
        self._write, self._place, self._settle = write, place, settle
        self._placing = threading.Lock()
        self._placed = write is None
        self.abandoned = False

    def run(self) -> None:
        """Write it, rename it into place, and settle it."""
        try:
            if self._write is not None and self._place is not None:
                self._write()
                with self._placing:
                    if self.abandoned:
                        raise _Abandoned
                    self._place()
                    self._placed = True
            self._settle()
        except BaseException as error:  # raised in the training thread
            self.failure = error

    def abandon(self) -> bool:
        """Stop after the current file, without moving the checkpoint into place. Return whether it was
        abandoned."""
        if not self._placing.acquire(blocking=False):
            self.join()
            return False
        self.abandoned = True
        self._placing.release()
        return not self._placed and self.failure is None


class AtomicCheckpoints(OfRun, PrivateHooks):
    """A mixin for a TRL Trainer, before it."""

    _writing: _Writing | None = None
    _warned = False
    _room: CopyRoom | None = None

    def write_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's, but atomic."""
        self.finish_writing()
        this = as_trainer(self)
        target = Path(this.args.output_dir) / f"checkpoint-{this.state.global_step}"
        if not written_by_one_process(this):
            with _removed_at_failure(this, target, target), without_removal():
                if _of_shards(this):
                    # The Trainer records the best checkpoint if its folder exists once the model is saved.
                    # With shards nothing is saved by then: the ranks would record different ones, or an
                    # older one, and wait for each other when they load it.
                    target.mkdir(parents=True, exist_ok=True)
                super().write_checkpoint(model, trial)
            if this.args.should_save:
                self.saving.complete(target)
            _wait_for_all()  # callbacks may read it in each process
            self.saving.written(target)
            if this.args.should_save:
                self._writing = _Writing(target.name, self._settling(target, flushed=False))
                self._writing.start()
            return
        in_background = self._written_in_background()
        folder = unfinished.named(target.parent)
        later: list[FileLater] = []
        checks: list[Callable[[], None]] = []
        with _removed_at_failure(this, target, folder):
            folder.mkdir(parents=True)
            if in_background:
                later, checks = self._copied_parts(folder, target)
                if self._room is not None:
                    self._room.count_pinned(sum(each.pinned for each in later))
            else:
                write_parts(this, folder, target)
            self.saving.complete(folder)
        room = self._room

        def write() -> None:
            with _removed_at_failure(this, target, folder):
                while checks:
                    checks.pop()()  # and let go of the copies
                while later:
                    copied = sum(each.size for each in later)
                    later.pop(0).write()  # and free its copy
                    if room is not None:
                        room.held_copy(copied)
                    if writing.abandoned:
                        raise _Abandoned
                share_weights(folder)
                self.saving.flush()
                unfinished.flush(folder)

        def place() -> None:
            with _removed_at_failure(this, target, folder):
                unfinished.rename_into_place(folder, target)
            self.saving.written(target)

        settle = self._settling(target, flushed=True)
        writing = self._writing = _Writing(target.name, settle, write, place)
        if in_background:
            writing.start()
        else:
            writing.run()
            self.finish_writing()

    def write_random_state(self, folder: str) -> None:
        """The Trainer's, in all processes before one writes the state that shows a checkpoint complete."""
        super().write_random_state(folder)
        _wait_for_all()

    def _settling(self, target: Path, *, flushed: bool) -> Callable[[], None]:
        """A function that flushes a checkpoint to the disk, unless its files are `flushed`, and then removes
        older ones."""
        this = as_trainer(self)
        best = this.state.best_model_checkpoint

        def settle() -> None:
            with _removed_at_failure(this, target, target):
                if not flushed:
                    self.saving.flush()
                    unfinished.flush(target)
                unfinished.flush_name(target)
            remove_old_checkpoints(this, target, best)

        return settle

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; no step is taken if a checkpoint could not be written."""
        if self._writing is not None and self._writing.failure is not None:
            self.finish_writing()
        if self._room is None:
            self._room = CopyRoom(as_trainer(self))
        self._room.count_batch(kwargs.get("inputs", args[1] if len(args) > 1 else None))
        trainer: Any = super()
        try:
            return trainer.training_step(*args, **kwargs)
        except RunError:
            self.finish_writing()  # broken weights in the checkpoint are the cause, and come first
            raise

    def steps_finished(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.finish_writing()
        super().steps_finished()

    def finish_writing(self) -> None:
        """Wait for the checkpoint that is being written, if there is one. Raises its error."""
        if (writing := self._writing) is None:
            return
        if writing.is_alive():
            writing.join()
        self._writing = None
        if writing.failure is not None:
            raise writing.failure

    def finish_writing_after_error(self, error: BaseException | None) -> None:
        """Wait for the checkpoint when an error has ended training: the run resumes from it. A second Ctrl-C
        exits without waiting."""
        if (writing := self._writing) is None:
            return
        if isinstance(error, Interrupted) and writing.abandon():
            self._writing = None
            self.saving.warn(f"{writing.checkpoint} was being written, and is left out")
            return
        try:
            self.finish_writing()
        except Exception as failure:  # in addition to the error that ended training
            self.saving.warn(str(failure))

    def _copied_parts(self, folder: Path, target: Path) -> tuple[list[FileLater], list[Callable[[], None]]]:
        """Write the small files, and copy the large ones. Return these, and the check of the copied weights,
        without which none of them may be placed."""
        this = as_trainer(self)
        self.checks_copies = True
        try:
            later = copy_parts(this, folder, target, self._no_memory)
        finally:
            self.checks_copies = False
        if self.guard is None:
            return later, []
        copies = {place: copy for each in later for place, copy in each.copies.items()}
        return later, [self.guard.copied_weights(this.model, this.state.global_step, copies)]

    def _written_in_background(self) -> bool:
        """Whether the current checkpoint can be written while training continues. Logs why not, once."""
        this = as_trainer(self)
        if not has_more_steps(this):
            return False
        if found := readers(this):
            why: str | None = f"the callback {found[0]} may read it"
        elif self._room is None:
            why = None
        else:
            self._room.held_copy(0)
            why = self._room.obstacle(held(this))
        if why is not None:
            self._warn_once(why)
        return why is None

    def _no_memory(self) -> None:
        self._warn_once("there was no memory for a copy")

    def _warn_once(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            self.saving.warn(f"the training waits until each checkpoint is written: {why}")


def _wait_for_all() -> None:
    if several_processes():
        torch.distributed.barrier()


def written_by_one_process(trainer: TunedTrainer) -> bool:
    """Whether only this process writes the checkpoints, and the Trainer uploads none of them."""
    args = trainer.args
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return args.world_size == 1 and not sharded and not args.push_to_hub


def _of_shards(trainer: Any) -> bool:
    """Whether each process writes its own part of the model into a checkpoint."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return plugin is not None and "SHARDED_STATE_DICT" in str(plugin.state_dict_type)


def has_more_steps(trainer: Any) -> bool:
    """Whether more steps follow this one."""
    left: bool = trainer.state.global_step < trainer.state.max_steps
    return left and not trainer.control.should_training_stop


def readers(trainer: Any) -> list[str]:
    """The callbacks that may read a checkpoint in `on_save`, and so need it complete by then: all that define
    `on_save`, unless the attribute `reads_checkpoints` says otherwise."""
    return [
        getattr(each, "known_as", type(each).__name__)
        for each in trainer.callback_handler.callbacks
        if getattr(each, "reads_checkpoints", acts_on_save(each))
    ]


def background_copy_size(trainer: TunedTrainer, steps: int) -> int:
    """The bytes of main memory for the copy of a checkpoint during training; 0 if no checkpoint is written in
    the background within `steps`."""
    args = trainer.args
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    every = args.save_steps * (steps if args.save_steps < 1 else 1)
    none = strategy == "no" or (strategy == "steps" and every >= steps)
    if none or (strategy == "epoch" and args.max_steps <= 0 and args.num_train_epochs <= 1):
        return 0
    return sizes(trainer)[1] if written_by_one_process(trainer) and not readers(trainer) else 0


@contextlib.contextmanager
def _removed_at_failure(trainer: TunedTrainer, target: Path, written: Path) -> Iterator[None]:
    """Remove a partial checkpoint `target` on failure, and report why it could not be written."""
    try:
        yield
    except BaseException as error:
        cause = None
        if isinstance(error, Exception) and not isinstance(error, (RunError, _Abandoned)):
            cause = cause_of(error, target, trainer)
        if written != target:
            unfinished.discard(written)
        elif cause is not None:
            shutil.rmtree(written, ignore_errors=True)
        if cause is None:
            raise
        raise not_written(target, cause, trainer) from error
