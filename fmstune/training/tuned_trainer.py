"""`TunedTrainer`: what the rest of fmstune relies on of a built trainer, and what a run passes to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch

from fmstune.config.methods.known import DEFAULT
from fmstune.models.saving import OwnFiles

Head = Literal["direct", "tiled", "own", "logits"]
"""How the loss is computed: `direct`, the LM head on the trained positions alone; `tiled`, TRL's way; `own`,
from the logits of the model's own `forward`, of all positions, which needs the most memory; `logits`, as
`own`, by a trainer of TRL's that knows no other way."""


class Guard(Protocol):
    """What watches the numbers of a run, as `NonFiniteGuard` does."""

    skipped: int

    @property
    def stops(self) -> bool:
        """Whether the run is to stop at a number that is not finite."""

    def loss(self, loss: torch.Tensor, inputs: Any, model: torch.nn.Module, step: int) -> torch.Tensor:
        """The loss of a batch as it is to be learnt from."""

    def gradient(self, norm: Any, step: int) -> bool:
        """Whether the weights may be updated by gradients of this norm."""

    def weights(self, model: torch.nn.Module, step: int) -> None:
        """Refuse to save a model that is broken."""


def _nothing(what: Any) -> None:
    """Without a run there is nothing to be done."""


@dataclass(frozen=True, slots=True)
class Saving:
    """What a run does with a checkpoint: `complete` puts files of its own into the folder in which it is
    being written, `written` gets the whole one, in a thread beside the training, before older ones are
    removed; `warn` gets what the training continues in spite of."""

    complete: Callable[[Path], None] = _nothing
    written: Callable[[Path], None] = _nothing
    warn: Callable[[str], None] = _nothing


class OfRun:
    """For a class beside a Trainer: what only fmstune knows of it. `build_trainer` and the run set it."""

    method: str = DEFAULT
    longest_row: int | None = None
    """`training.max_length`, which TRL is not always given."""
    guard: Guard | None = None
    saving = Saving()
    own_files = OwnFiles()
    save_dtype: str = "auto"
    lm_head: Head | None = None
    unbalanced: bool = False
    """Whether the config asks for a loss that balances the experts, and the model gives none."""
    ref_model: Any = None
    """The model that the trained one is compared with, of methods that have one."""

    def batch_size_changed(self) -> None:
        """To be called when the arguments have another size of a batch than the trainer was made with."""


class TunedTrainer(Protocol):
    """A trainer of TRL's, with `OfRun`. Of transformers' `Trainer` these are public and documented; the rest
    goes through `trl_compat`."""

    args: Any
    model: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    optimizer: Any
    lr_scheduler: Any
    state: Any
    accelerator: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool

    method: str
    longest_row: int | None
    guard: Guard | None
    saving: Saving
    own_files: OwnFiles
    save_dtype: str
    lm_head: Head | None
    unbalanced: bool
    ref_model: Any

    def train(self, resume_from_checkpoint: str | bool | None = None) -> Any:
        """Train to the end."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The loss of a batch of the evaluation, and its logits and labels."""

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The evaluation over a loader, with its metrics."""

    def get_train_dataloader(self) -> Any:
        """The batches of an epoch."""

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The batches of an update, and how many tokens are trained in them."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures, and keep them in `state`."""

    def create_optimizer(self) -> Any:
        """Make `optimizer`."""

    def create_scheduler(self, num_training_steps: int) -> Any:
        """Make `lr_scheduler`."""

    def add_callback(self, callback: Any) -> None:
        """Add a callback."""

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback."""

    def save_model(self, output_dir: str | None = None) -> None:
        """Save the model at the end of the run."""

    def saved_dtype(self) -> torch.dtype | None:
        """What the weights are saved in at the end; `None` for what they are held in."""

    def end_workers(self) -> None:
        """End the processes that load data."""

    def leave_writing(self, error: BaseException | None) -> None:
        """Wait for a checkpoint that is being written, after an error that has ended the training."""

    def forget_batches(self) -> None:
        """Begin to count batches again."""

    def batch_size_changed(self) -> None:
        """See `OfRun`."""


def save_with(trainer: TunedTrainer, saving: Saving, after: contextlib.ExitStack) -> None:
    """Have checkpoints saved in this way, and none be under way after `after`."""
    trainer.saving = saving
    after.push(lambda kind, error, trace: trainer.leave_writing(error))


def as_trainer(part: object) -> TunedTrainer:
    """A class beside a Trainer, or its `super()`, as the trainer that it is a part of."""
    return cast(TunedTrainer, part)
