"""Disk space of a run: enough before the start, and a checkpoint to resume from when the disk fails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fmstune.access import remedy_of
from fmstune.errors import RunError
from fmstune.models.checkpoints import newest_checkpoint
from fmstune.system.disk import free, shortage
from fmstune.system.files import flush_files
from fmstune.system.memory import format_bytes
from fmstune.text import counted, first_line
from fmstune.training.memory.estimate import optimizer_size
from fmstune.training.memory.workload import workload
from fmstune.training.trainers.kept_reference import reference_size
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.tuned_trainer import TunedTrainer, as_trainer

_NO_MEMORY = ("std::bad_alloc", "DefaultCPUAllocator")
"""torch has no exception class for main memory."""
_CERTAINTY = 0.9
"""Actual file sizes differ a little from this estimate; only a clear excess is refused."""


class GuardedSaving(PrivateHooks):
    """A mixin for a TRL Trainer, before it: the final model is on the disk, or the error says why not."""

    def store_model(self, output_dir: str | None, *, at_end: bool) -> None:
        """The Trainer's; `AtomicCheckpoints` flushes checkpoints, and reports their errors."""
        this = as_trainer(self)
        try:
            super().store_model(output_dir, at_end=at_end)
            if at_end and this.args.should_save:
                flush_files(Path(output_dir or this.args.output_dir))
        except RunError:
            raise
        except Exception as error:
            target = Path(output_dir or this.args.output_dir)
            cause = cause_of(error, target, this) if at_end else None
            if cause is None:
                raise
            raise not_written(target, cause, this) from error


def require_room(trainer: TunedTrainer, steps: int, path: Path) -> None:
    """Raise `RunError` if the files that the run keeps clearly exceed the free space of its disk."""
    args = trainer.args
    model, checkpoint = sizes(trainer)
    saves = _saves(args, steps)
    # A new checkpoint is written before an old one is removed.
    held = saves if args.save_total_limit is None else min(saves, args.save_total_limit + 1)
    there = len(list(path.glob("checkpoint-*")))
    needed, room = model + checkpoint * max(0, held - there), free(path)
    if room is None or needed * _CERTAINTY <= room:
        return
    settings = []
    if held > 2:
        settings.append("training.save_total_limit = 1")
    if saves and not args.save_only_model:
        settings.append("training.save_only_model = true (such a run cannot be resumed)")
    settings.append("another --output-dir")
    checkpoints = f"{counted(held, 'checkpoint')} of {format_bytes(checkpoint)} and " if saves else ""
    raise RunError(
        f"the disk of {path} is too small for this run: {checkpoints}the model of {format_bytes(model)} need "
        f"{format_bytes(needed)}, and {format_bytes(room)} are free. Free some, or choose "
        f"{', or '.join(settings)}."
    )


def sizes(trainer: TunedTrainer) -> tuple[int, int]:
    """The bytes of the saved model, and of a checkpoint with everything needed to resume."""
    model = sum(weight.numel() * weight.element_size() for weight in saved_weights(trainer))
    if trainer.args.save_only_model:
        return model, model
    work = workload(trainer)
    trained = sum(w.numel() * w.element_size() for w in trainer.model.parameters() if w.requires_grad)
    state = optimizer_size(work) if work is not None else 2 * trained
    return model, model + state + reference_size(trainer)


def saved_weights(trainer: TunedTrainer) -> list[Any]:
    """The weights in a checkpoint: all, or only those of an adapter."""
    adapter = hasattr(trainer.model, "peft_config")
    return [weight for weight in trainer.model.parameters() if weight.requires_grad or not adapter]


def _saves(args: Any, steps: int) -> int:
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0
    if strategy == "steps":
        every = args.save_steps if args.save_steps >= 1 else max(1, math.ceil(args.save_steps * steps))
        saves: int = math.ceil(steps / every)
        return saves
    if strategy == "epoch" and args.max_steps <= 0:
        epochs: int = math.ceil(args.num_train_epochs)
        return epochs
    return 1


@dataclass(frozen=True, slots=True)
class Cause:
    """Why files could not be written, the remedy, and the settings that avoid it, as parts of a sentence."""

    what: str
    remedy: str
    settings: str = ""


def cause_of(error: BaseException, target: Path, trainer: TunedTrainer) -> Cause | None:
    """Why `target` could not be written; `None` if that is not known. safetensors, torch and the file system
    each have their own errors, and most do not have the file's name."""
    less = "" if trainer.args.save_only_model else "training.save_only_model = true"
    if (short := shortage(error, target)) is not None:
        size = format_bytes(sizes(trainer)[1])
        fewer = "" if short.of_one_file else "training.save_total_limit = 1"
        settings = " or ".join(filter(None, [fewer, less]))
        return Cause(f"{short.what}, and a checkpoint needs {size}", short.remedy, settings)
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return Cause("main memory ran out while files were written", "free some memory", less)
    if isinstance(error, (OSError, SafetensorError)):
        why = getattr(error, "strerror", None) or first_line(error)
        return Cause(
            f"{target.parent} could not be written to ({why})",
            remedy_of(error, target) or "check its disk",
        )
    return None


def not_written(target: Path, cause: Cause, trainer: TunedTrainer) -> RunError:
    """The error for a `cause` that prevented `target` from being written."""
    kept = newest_checkpoint(Path(trainer.args.output_dir))
    if kept == target:
        what = f"{target.name} could not be rewritten"
    elif target.name.startswith("checkpoint-"):
        what = f"{target.name} was incomplete and is removed"
    else:
        what = f"the model could not be written to {target}"
    go_on = f"{kept} is complete: {cause.remedy}, and resume with --resume" if kept else cause.remedy
    if not kept:
        go_on = go_on[0].upper() + go_on[1:]
    several = " or " in cause.settings
    less = f"; {cause.settings} need{'' if several else 's'} less" if cause.settings else ""
    return RunError(f"{cause.what}: {what}. {go_on}{less}.")
