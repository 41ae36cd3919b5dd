"""A rehearsal before the start: fail in the first minute instead of after hours.

The longest batch is trained on, an evaluation batch scored, a checkpoint written and read back; then
everything is restored. In `auto` it takes place for runs that are estimated to take longer than five
minutes: six operations per weight and token, at the speed of a matrix multiplication on this machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from fmstune.data.tokens.lengths import are_tokenised, sequence_lengths
from fmstune.errors import RunError
from fmstune.system.disk import shortage
from fmstune.system.memory import format_bytes
from fmstune.text import in_series
from fmstune.training.memory.outlook import peak, reset_peak
from fmstune.training.memory.placeholder_rows import rows_to_measure
from fmstune.training.rehearsal.trial_step import batch, state_restored, train_one_batch
from fmstune.training.trl_compat.saving import save_for_checkpoint, write_optimizer
from fmstune.training.tuned_trainer import TunedTrainer

_LONG = 300.0
_USED_SPEED = 0.4
"""The share of the bare multiplication speed that training of small models on a CPU reaches."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The result of a rehearsal: the peak memory in bytes, and the run's estimated time in seconds."""

    peak: int
    run_seconds: float
    seconds: float
    parts: str
    at_most: bool = False
    """Whether the time is based on the longest rows, as typical ones are unknown."""

    def line(self) -> str:
        """A readable line."""
        about = "at most" if self.at_most else "about"
        return (
            f"{self.parts} in {self.seconds:.1f} s · peak {format_bytes(self.peak)} · the run will take "
            f"{about} {duration(self.run_seconds)}"
        )


def wanted(setting: str, trainer: TunedTrainer, steps: int) -> bool:
    """Whether to rehearse, by `run.rehearse` and the estimated time of the run."""
    if setting == "never" or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return False  # sharded weights cannot be restored from the full ones
    if setting == "always":
        return True
    long = estimated_seconds(trainer, steps) > _LONG
    if trainer.args.world_size == 1:
        return long
    # Each measures a different speed, and one that rehearses alone would wait for the others forever.
    one = torch.tensor(int(long), device=trainer.args.device)
    torch.distributed.all_reduce(one, op=torch.distributed.ReduceOp.MAX)
    return bool(one)


def rehearse(trainer: TunedTrainer, steps: int) -> Rehearsal:
    """Run the rehearsal. Raises what the training would raise, and `RunError` if the disk is full."""
    args, began = trainer.args, time.perf_counter()
    reset_peak(args.device)
    known = are_tokenised(trainer.train_dataset)
    parts = ["the longest batch" if known else "a batch of the longest rows that may come"]
    try:
        with state_restored(trainer) as scratch:
            seconds = train_one_batch(trainer, args.per_device_train_batch_size)
            if trainer.eval_dataset is not None and str(args.eval_strategy.value) != "no":
                trainer.model.eval()
                rows = batch(trainer, trainer.eval_dataset, args.per_device_eval_batch_size)
                with trainer.accelerator.autocast():
                    trainer.prediction_step(trainer.model, rows, prediction_loss_only=True)
                parts.append("an evaluation")
            most = peak(args.device)
            if args.should_save:
                _write_and_read(trainer, scratch, steps)
                parts.append("a checkpoint")
    except (OSError, RuntimeError) as error:
        if (short := shortage(error, Path(args.output_dir))) is None:
            raise
        raise RunError(
            f"the rehearsal's checkpoint could not be written to {args.output_dir}: {short.what}. "
            f"{short.remedy.capitalize()}."
        ) from error
    lengths = sequence_lengths(rows_to_measure(trainer), args.max_length).sum(axis=1)
    longest = sorted(lengths)[-args.per_device_train_batch_size :]
    usual = float(lengths.mean() / (sum(longest) / len(longest)))
    whole = seconds * usual * args.gradient_accumulation_steps * steps
    return Rehearsal(most, whole, time.perf_counter() - began, in_series(parts), at_most=not known)


def estimated_seconds(trainer: TunedTrainer, steps: int) -> float:
    """The estimated duration of the run, before any trial."""
    args = trainer.args
    rows = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
    lengths = sequence_lengths(rows_to_measure(trainer), args.max_length).sum(axis=1)
    tokens = rows * float(lengths.mean())
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    operations = float(6 * weights * tokens)
    return operations / (_USED_SPEED * _speed(args.device, half=args.bf16 or args.fp16))


def duration(seconds: float) -> str:
    """A readable duration: `3.2 h`."""
    for size, unit, units in ((86400, "day", "days"), (3600, "h", "h"), (60, "min", "min")):
        if seconds >= size:
            number = f"{seconds / size:.2g}"
            return f"{number} {unit if number == '1' else units}"
    return f"{seconds:.2g} s"


def _speed(device: torch.device, *, half: bool) -> float:
    """Operations per second of a matrix multiplication. Draws no random numbers."""
    size = 512 if device.type == "cpu" else 8192
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - began)
    return float(2 * size**3 / best)


def _write_and_read(trainer: TunedTrainer, scratch: Path, steps: int) -> None:
    checkpoint = scratch / "checkpoint"
    save_for_checkpoint(trainer, checkpoint)
    if not trainer.args.save_only_model:
        trainer.create_scheduler(num_training_steps=steps)
        write_optimizer(trainer, checkpoint)
        torch.load(checkpoint / "optimizer.pt", map_location="cpu", mmap=True, weights_only=True)
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  (it is not a mapping)
                stored.get_tensor(name)
