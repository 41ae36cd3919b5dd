"""A TRL Trainer that reports its current phase, and counts what it has learnt from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fmstune.console import phase
from fmstune.resources.phases import Phase, PhaseClock
from fmstune.training.memory.parts import MemoryParts
from fmstune.training.speed.flat_batches import REAL_TOKENS
from fmstune.training.trainers.row_batches import row_count, row_lengths
from fmstune.training.tuned_trainer import as_trainer

_BETWEEN = ("other", "optimizer")


class TimedTraining:
    """A mixin for a TRL Trainer, before all others. A no-op without a `clock`."""

    clock: PhaseClock | None = None
    memory: MemoryParts | None = None
    rows_seen = 0
    """The number of rows that this process has read."""
    tokens_trained: Any = 0
    """The sum of the loss divisors: trained tokens, if the method counts them. It may be a tensor on a
    device, which is not synchronized before a log."""
    _operations: tuple[Any, int] | None = None
    """A model, and its operations per input value."""

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The Trainer's, timed as waiting for data."""
        if self.clock is None:
            return as_trainer(super()).get_batch_samples(epoch_iterator, num_batches, device)
        with self._timed("data", _BETWEEN):
            batches, items = as_trainer(super()).get_batch_samples(epoch_iterator, num_batches, device)
            self.rows_seen += sum(self._rows_of(batch) for batch in batches)
            if items is not None:
                self.tokens_trained = self.tokens_trained + items
        return batches, items

    def floating_point_ops(self, inputs: Any) -> int:
        """The Trainer's, cached per token. It is proportional to the tokens, but traverses all modules at
        each batch to count the weights: 1.2 ms of the training thread for SmolLM2, 0.1 ms for the demo."""
        trainer: Any = super()
        model = as_trainer(self).model
        name = getattr(model, "main_input_name", "input_ids")
        size = inputs[name].numel() if name in inputs else 0
        if not size:
            return int(trainer.floating_point_ops(inputs))
        if self._operations is None or self._operations[0] is not model:
            self._operations = model, trainer.floating_point_ops(inputs) // size
        return self._operations[1] * size

    def _rows_of(self, batch: Any) -> int:
        args = as_trainer(self).args
        if "attention_mask" in batch or "input_ids" not in batch or batch["input_ids"].shape[0] > 1:
            return row_count(batch) if "input_ids" in batch else int(args.per_device_train_batch_size)
        if (bounds := batch.get("cu_seq_lens_q")) is not None:
            return int((bounds < batch[REAL_TOKENS]).sum()) if REAL_TOKENS in batch else len(bounds) - 1
        # Finding the starts of concatenated rows would synchronize a GPU. All batches but an epoch's last
        # have this many rows; if rows are packed, these are the packed ones.
        if args.device.type != "cpu":
            return int(args.per_device_train_batch_size)
        lengths = row_lengths(batch) if "position_ids" in batch else None
        return 1 if lengths is None else len(lengths)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, timed as the backward pass except for the loss. The last one of an update is
        followed by the optimizer, until `on_step_end`."""
        trainer: Any = super()
        if self.clock is None:
            return trainer.training_step(*args, **kwargs)
        with self._timed("backward", _BETWEEN):
            loss = trainer.training_step(*args, **kwargs)
        if as_trainer(self).accelerator.gradient_state.sync_gradients:
            self.clock.enter("optimizer")
        return loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, timed as a training step's forward pass. The memory of the first is measured."""
        measured = self.memory.forward(model, inputs) if self.memory else contextlib.nullcontext()
        with self._timed("forward", ("backward",)), measured:
            return as_trainer(super()).compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, timed as a whole."""
        trainer: Any = super()
        if getattr(self, "is_in_train", False):  # the Trainer calls no callback before its last one
            phase("evaluating")
        with self._timed("evaluation", _BETWEEN):
            return trainer.evaluate(*args, **kwargs)

    def write_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, timed."""
        trainer: Any = super()
        with self._timed("checkpoint", _BETWEEN):
            trainer.write_checkpoint(*args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, timed including its callbacks, such as the journal's."""
        with self._timed("logging", _BETWEEN):
            as_trainer(super()).log(*args, **kwargs)

    @contextlib.contextmanager
    def _timed(self, phase: Phase, within: tuple[str, ...]) -> Iterator[None]:
        """Enter a phase if the clock is in one of the phases `within`: forward passes and logs of an
        evaluation belong to it, and outside of training the clock is stopped."""
        clock = self.clock
        if clock is None or (before := clock.phase) not in within:
            yield
            return
        clock.enter(phase)
        try:
            yield
        finally:
            clock.enter(before)
