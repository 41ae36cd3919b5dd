"""`TunedTrainer`: the interface of a built trainer that fmstune relies on, and what a run passes to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, cast

import torch

from fmstune.config.methods.known import DEFAULT
from fmstune.models.saving import OwnFiles

Head = Literal["direct", "tiled", "own", "logits"]
"""How the loss is computed: `direct`, the LM head on the trained positions only; `tiled`, TRL's way; `own`,
from the logits of the model's own `forward` at all positions, which needs the most memory; `logits`, like
`own`, in a TRL trainer that supports no other way."""


class Guard(Protocol):
    """Watches the numbers of a run, like `NonFiniteGuard`."""

    skipped: int

    @property
    def stops(self) -> bool:
        """Whether the run stops at a non-finite number."""

    def loss(self, loss: torch.Tensor, inputs: Any, model: torch.nn.Module, step: int) -> torch.Tensor:
        """The loss of a batch to compute gradients from."""

    def gradient(self, norm: Any, step: int, *, applied: bool | None = None) -> bool:
        """Whether the weights may be updated by gradients of this norm."""

    def weights(self, model: torch.nn.Module, step: int) -> None:
        """Refuse to save a broken model."""

    def copied_weights(
        self, model: torch.nn.Module, step: int, copies: Mapping[int, torch.Tensor]
    ) -> Callable[[], None]:
        """Like `weights`, but return the check of `copies` of weights, given by the weights' addresses."""


def _nothing(what: Any) -> None:
    """Without a run there is nothing to do."""


@dataclass(frozen=True, slots=True)
class Saving:
    """How a run saves a checkpoint: `complete` adds its files to the folder that is being written; `flush`
    flushes what the run has recorded to the disk, in a background thread: a run that is resumed from the
    checkpoint does not record it again; `written` receives the complete one, before older ones are removed;
    `warn` receives problems despite which the training continues."""

    complete: Callable[[Path], None] = _nothing
    flush: Callable[[], None] = lambda: None
    written: Callable[[Path], None] = _nothing
    warn: Callable[[str], None] = _nothing


class OfRun:
    """A mixin for a Trainer: fmstune's own attributes. `build_trainer` and the run set them."""

    method: str = DEFAULT
    longest_row: int | None = None
    """`training.max_length`, which TRL is not always given."""
    guard: Guard | None = None
    saving = Saving()
    checks_copies = False
    """Whether the model is being saved from copies, in which its weights are checked afterwards."""
    own_files = OwnFiles()
    save_dtype: str = "auto"
    lm_head: Head | None = None
    unbalanced: bool = False
    """Whether the config requests a loss that balances the experts, but the model provides none."""
    ref_model: Any = None
    """The reference model, for methods that have one."""
    lr_multipliers: Mapping[str, float] = MappingProxyType({})
    """`model.lr_multipliers`."""
    eval_sets: Mapping[str, int] = MappingProxyType({})
    """The number of rows of each named evaluation set, in the order of `eval_dataset`; empty if they have no
    names."""

    def batch_size_changed(self) -> None:
        """Call this when the batch size in the arguments has changed since the trainer was built."""


class TunedTrainer(Protocol):
    """A TRL trainer with `OfRun`. These members of transformers' `Trainer` are public and documented;
    everything else goes through `trl_compat`."""

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
    current_gradient_accumulation_steps: int

    method: str
    longest_row: int | None
    guard: Guard | None
    saving: Saving
    own_files: OwnFiles
    save_dtype: str
    lm_head: Head | None
    unbalanced: bool
    ref_model: Any
    eval_sets: Mapping[str, int]
    lr_multipliers: Mapping[str, float]

    def train(self, resume_from_checkpoint: str | bool | None = None) -> Any:
        """Train until the end."""

    def evaluate(self) -> dict[str, float]:
        """The metrics of the evaluation data."""

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

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The batches of an evaluation."""

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The batches of an update, and their number of trained tokens."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures, and keep them in `state`."""

    def create_optimizer(self, model: Any = None) -> Any:
        """Create `optimizer`, for another model than `model` if given."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create `lr_scheduler`, for another optimizer than `optimizer` if given."""

    def add_callback(self, callback: Any) -> None:
        """Add a callback."""

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback."""

    def save_model(self, output_dir: str | None = None) -> None:
        """Save the model at the end of the run."""

    def saved_dtype(self) -> torch.dtype | None:
        """The type of the weights in the final model; `None` for the one they are held in."""

    def end_workers(self) -> None:
        """End the processes that load data."""

    def finish_writing_after_error(self, error: BaseException | None) -> None:
        """Wait for a checkpoint that is being written, after an error ended the training."""

    def forget_batches(self) -> None:
        """Restart the count of batches."""

    def batch_size_changed(self) -> None:
        """See `OfRun`."""


def save_with(trainer: TunedTrainer, saving: Saving, after: contextlib.ExitStack) -> None:
    """Save checkpoints in this way; when `after` closes, none is still being written."""
    trainer.saving = saving
    after.push(lambda kind, error, trace: trainer.finish_writing_after_error(error))


def as_trainer(part: object) -> TunedTrainer:
    """A Trainer mixin, or its `super()`, typed as the trainer that it is part of."""
    return cast(TunedTrainer, part)
