"""The last checks before the first step, and the comparison of estimate and measurement after the last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole, phase
from fmstune.data.tokens.lengths import are_tokenised, sequence_lengths
from fmstune.errors import RunError
from fmstune.models import unfinished
from fmstune.system.memory import format_bytes
from fmstune.text import counted
from fmstune.trackers.base import Tracker
from fmstune.training.memory.outlook import Outlook, explained, outlook, peak_of_machine, reset_peak
from fmstune.training.rehearsal.auto_batch import find_batch
from fmstune.training.rehearsal.rehearsal import rehearse, wanted
from fmstune.training.rehearsal.trial_step import remove_leftovers
from fmstune.training.trainers.disk import require_room

if TYPE_CHECKING:
    from fmstune.training.build import BuiltTrainer


def prepare(built: BuiltTrainer, config: RunConfig, tracker: Tracker, out: RunConsole) -> Outlook | None:
    """Find the batch size if requested, check that memory and disk suffice, and rehearse.

    An estimate above the memory is only a warning, since the rehearsal measures. Only one far above it, at
    which the kernel would kill the process, is an error. Returns the estimate. Raises `RunError`.
    """
    trainer = built.trainer
    # Left over from a killed run: a rehearsal, and an incomplete checkpoint.
    remove_leftovers(trainer)
    unfinished.remove_leftovers(Path(trainer.args.output_dir))
    try:
        unfinished.require_names(Path(trainer.args.output_dir))
    except FileExistsError as error:
        raise RunError(str(error)) from error
    require_room(trainer, built.steps, Path(trainer.args.output_dir))
    if config.run.auto_batch:
        phase("finding the batch size")
        size, accumulation = find_batch(trainer)
        out.say("batch", f"{counted(size, 'row')} at once, {counted(accumulation, 'time')} per update")
        found = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        tracker.set_params(found, "auto_batch")
    expected = outlook(trainer, built.steps)
    if expected is not None and expected.hopeless:
        raise RunError(expected.problem())
    if expected is not None and not expected.fits:
        out.warn(expected.problem())
    with explained(trainer):
        if wanted(config.run.rehearse, trainer, built.steps):
            phase("rehearsing")
            out.say("rehearse", rehearse(trainer, built.steps).line())
        elif config.run.rehearse == "always":
            out.warn("no rehearsal: with FSDP and DeepSpeed the weights could not be restored after it")
    reset_peak(trainer.args.device)
    return expected


def compare(built: BuiltTrainer, expected: Outlook | None, tracker: Tracker, out: RunConsole) -> None:
    """Print and track the measured peak and the estimate, in bytes."""
    device, step = built.trainer.args.device, built.trainer.state.global_step
    if device.type not in ("cpu", "cuda"):
        return
    measured = peak_of_machine(built.trainer)
    tracker.track(measured, "peak_memory", "train", step=step)
    line = f"peak {format_bytes(measured)}"
    if expected is not None:
        tracker.track(expected.needed.peak, "estimated_memory", "train", step=step)
        line += f", estimated {format_bytes(expected.needed.peak)}"
    out.say("memory", line)


def report_plan(built: BuiltTrainer, directory: Path, out: RunConsole) -> None:
    """Report a dry run's estimates: memory, disk, steps and tokens. Raises `RunError`."""
    trainer = built.trainer
    expected = outlook(trainer, built.steps)
    if expected is not None:
        streamed = not are_tokenised(trainer.train_dataset)
        rows = f" for rows of {expected.work.longest:,} tokens, the longest possible" if streamed else ""
        out.say("memory", f"{expected.line()}, an estimate{rows}")
        if not expected.fits:
            raise RunError(expected.problem())
    require_room(trainer, built.steps, directory)
    args, rows = trainer.args, trainer.train_dataset
    each_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    seen = built.steps * each_step
    line = f"{counted(built.steps, 'step')} of {counted(each_step, 'row')}"
    if are_tokenised(rows):
        mean = sequence_lengths(rows, args.max_length).sum(axis=1).mean()
        line += f", about {int(seen * mean):,} tokens"
    out.say("steps", line)
