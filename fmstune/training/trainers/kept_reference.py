"""A reference model that follows the trained one (`training.sync_ref_model`) is a part of each checkpoint.

TRL's checkpoints leave it out, and a resumed run would compare with the initial model again. The reference of
a continued adapter is an adapter too, and is saved beside it: it stays out of the final model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from fmstune.errors import ConfigError
from fmstune.models.checkpoints import step_of
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.trl_compat.reference_logps import REFERENCE_ADAPTER
from fmstune.training.tuned_trainer import TunedTrainer, as_trainer

REFERENCE_NAME = "reference.pt"


class KeepsReference(PrivateHooks):
    """A mixin for a TRL Trainer, before it."""

    def store_model(self, output_dir: str | None, *, at_end: bool) -> None:
        """The Trainer's, with the reference if it changes."""
        this = as_trainer(self)
        args = this.args
        with _trained_adapter_alone(this) if at_end else contextlib.nullcontext():
            super().store_model(output_dir, at_end=at_end)
        if at_end or output_dir is None or args.save_only_model or not args.should_save:
            return
        if has_moving_reference(this) and not is_sharded(this):
            # Each weight once: those that are tied have the same storage.
            weights = {name: weight.data for name, weight in _reference(this).named_parameters()}
            torch.save(weights, str(Path(output_dir) / REFERENCE_NAME))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's. Raises `ConfigError` for a checkpoint that lacks the reference."""
        if isinstance(resume_from_checkpoint, str):
            _load(as_trainer(self), Path(resume_from_checkpoint))
        trainer: Any = super()
        return trainer.train(resume_from_checkpoint, *args, **kwargs)


@contextlib.contextmanager
def _trained_adapter_alone(trainer: TunedTrainer) -> Iterator[None]:
    """Save a model without the adapter that is its reference. The Trainer calls `save_pretrained` without a
    way to name adapters."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if not isinstance(model, PeftModel) or REFERENCE_ADAPTER not in model.peft_config:
        yield
        return
    saved: Any = model.save_pretrained
    names = [name for name in model.peft_config if name != REFERENCE_ADAPTER]
    model.save_pretrained = functools.partial(saved, selected_adapters=names)
    try:
        yield
    finally:
        model.save_pretrained = saved


def has_moving_reference(trainer: TunedTrainer) -> bool:
    """Whether the reference model changes during training."""
    return trainer.ref_model is not None and bool(getattr(trainer.args, "sync_ref_model", False))


def is_sharded(trainer: TunedTrainer) -> bool:
    """Whether the reference is split across processes: it is not a part of checkpoints then."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def reference_size(trainer: TunedTrainer) -> int:
    """The bytes of the reference in a checkpoint."""
    if not has_moving_reference(trainer) or is_sharded(trainer):
        return 0
    return sum(weight.numel() * weight.element_size() for weight in _reference(trainer).parameters())


def _reference(trainer: TunedTrainer) -> Any:
    return trainer.accelerator.unwrap_model(trainer.ref_model)


def _load(trainer: TunedTrainer, checkpoint: Path) -> None:
    file = checkpoint / REFERENCE_NAME
    if not file.exists():
        if has_moving_reference(trainer) and step_of(checkpoint) >= trainer.args.ref_model_sync_steps:
            raise ConfigError(
                f"{checkpoint} has no reference model, which training.sync_ref_model has changed since the "
                "start (sharded runs, and earlier versions of fmstune, do not save it): start a new run, or "
                "set training.sync_ref_model = false to compare with the initial model."
            )
        return
    if trainer.ref_model is None or is_sharded(trainer):
        return
    weights = torch.load(file, map_location="cpu", weights_only=True)
    for name, weight in _reference(trainer).named_parameters():
        weight.data.copy_(weights[name])
