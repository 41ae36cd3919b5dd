"""Disk space of a run: enough before the start, and a checkpoint to resume from when the disk fills up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fmstune.errors import RunError
from fmstune.models.checkpoints import newest_checkpoint
from fmstune.system.disk import Shortage, free, shortage
from fmstune.system.memory import amount
from fmstune.text import counted
from fmstune.training.memory.estimate import optimizer_size
from fmstune.training.memory.workload import workload
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.tuned_trainer import TunedTrainer, as_trainer

_CERTAINTY = 0.9
"""Actual file sizes differ a little from this estimate; only a clear excess is refused."""


class GuardedSaving(PrivateHooks):
    """A mixin for a TRL Trainer, before it, that reports the remedy when the disk is full."""

    def store_model(self, output_dir: str | None, *, at_end: bool) -> None:
        """The Trainer's; `WholeCheckpoints` reports a full disk for checkpoints."""
        this = as_trainer(self)
        try:
            super().store_model(output_dir, at_end=at_end)
        except RunError:
            raise
        except Exception as error:  # safetensors, torch and the file system each have their own errors
            target = Path(output_dir or this.args.output_dir)
            short = shortage(error, target) if at_end else None
            if short is None:
                raise
            raise disk_full(target, short, this) from error


def require_room(trainer: TunedTrainer, steps: int, path: Path) -> None:
    """Raise `RunError` if the files that the run keeps clearly exceed the free space of its disk."""
    args = trainer.args
    model, checkpoint = sizes(trainer)
    saves = _saves(args, steps)
    # A new checkpoint is written before an old one is removed.
    held = saves if args.save_total_limit is None else min(saves, args.save_total_limit + 1)
    there = len(list(path.glob("checkpoint-*")))
    needed, room = model + checkpoint * max(0, held - there), free(path)
    if needed * _CERTAINTY <= room:
        return
    settings = []
    if held > 2:
        settings.append("training.save_total_limit = 1")
    if saves and not args.save_only_model:
        settings.append("training.save_only_model = true (such a run cannot be resumed)")
    settings.append("another --output-dir")
    checkpoints = f"{counted(held, 'checkpoint')} of {amount(checkpoint)} and " if saves else ""
    raise RunError(
        f"the disk of {path} is too small for this run: {checkpoints}the model of {amount(model)} need "
        f"{amount(needed)}, and {amount(room)} are free. Free some, or choose {', or '.join(settings)}."
    )


def sizes(trainer: TunedTrainer) -> tuple[int, int]:
    """The bytes of the saved model, and of a checkpoint with everything needed to resume."""
    model = sum(weight.numel() * weight.element_size() for weight in saved_weights(trainer))
    if trainer.args.save_only_model:
        return model, model
    work = workload(trainer)
    trained = sum(w.numel() * w.element_size() for w in trainer.model.parameters() if w.requires_grad)
    return model, model + (optimizer_size(work) if work is not None else 2 * trained)


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


def disk_full(target: Path, short: Shortage, trainer: TunedTrainer) -> RunError:
    """The error for a `shortage` that prevented `target` from being written."""
    kept = newest_checkpoint(Path(trainer.args.output_dir))
    if kept == target:
        what = f"{target.name} could not be rewritten"
    elif target.name.startswith("checkpoint-"):
        what = f"{target.name} was incomplete and is removed"
    else:
        what = f"the model could not be written to {target}"
    go_on = f"{kept} is complete: {short.remedy}, and resume with --resume" if kept else short.remedy
    return RunError(
        f"{short.what}, and a checkpoint needs {amount(sizes(trainer)[1])}: {what}. {go_on}; "
        "training.save_total_limit = 1 or training.save_only_model = true need less."
    )
