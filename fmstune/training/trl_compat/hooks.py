"""Private methods of a Trainer of TRL's, under names that classes before it override."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import trainer as trainer_module
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler


class GroupedByEpoch(Sampler[int]):
    """The order of rows grouped by length, drawn from the seed and the epoch.

    transformers draws it from the process's random state, which a resumed run only restores after the order:
    it would skip other rows than those it has learnt, and learn some twice in an epoch and others not at all.
    """

    def __init__(self, grouped: LengthGroupedSampler, seed: int) -> None:
        self._grouped, self._seed, self._epoch = grouped, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._grouped)

    def __iter__(self) -> Iterator[int]:
        self._grouped.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(self._grouped)


class _WrittenBy:
    """What the Trainer reads of a checkpoint's `config.json`: the version that wrote it."""

    def __init__(self, path: str) -> None:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
        self.transformers_version = settings.get("transformers_version")

    @classmethod
    def from_json_file(cls, path: str) -> _WrittenBy:
        """As `PreTrainedConfig` does."""
        return cls(path)


@contextlib.contextmanager
def _reading_versions() -> Iterator[None]:
    """Let the Trainer read a `config.json` of any architecture: it reads it as `PreTrainedConfig`, which
    refuses values that only an architecture's own class knows (deepseek_v4)."""
    own = trainer_module.PreTrainedConfig
    trainer_module.PreTrainedConfig = _WrittenBy
    try:
        yield
    finally:
        trainer_module.PreTrainedConfig = own


class PrivateHooks:
    """For a class right before a Trainer of TRL's: its private methods under names that classes before it
    override. A callback comes too late for each of them, and cannot change what they do."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.write_checkpoint(model, trial)

    def write_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint. `on_save` comes after it, and not at all where writing fails."""
        _trainer(super())._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        self.write_random_state(output_dir)

    def write_random_state(self, folder: str) -> None:
        """Write the random state of this process into a checkpoint: the last of its files, but for the
        Trainer's state."""
        _trainer(super())._save_rng_state(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.write_model(output_dir, state_dict)

    def write_model(self, output_dir: str | None, state_dict: Any) -> None:
        """Write the weights with their settings, the tokenizer and the Trainer's arguments. `save_model` is
        public, and gathers the weights of FSDP and DeepSpeed before it comes here."""
        _trainer(super())._save(output_dir, state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's. Its private keyword is true when it calls this itself, for a checkpoint."""
        self.store_model(output_dir, at_end=not _internal_call)

    def store_model(self, output_dir: str | None, *, at_end: bool) -> None:
        """Save the model, for a checkpoint or `at_end` of the run. With FSDP's sharded `state_dict_type`, the
        Trainer would save nothing at the end."""
        plugin = getattr(_trainer(self).accelerator.state, "fsdp_plugin", None)
        if at_end and plugin is not None:
            plugin.set_state_dict_type("FULL_STATE_DICT")
        _trainer(super()).save_model(output_dir, _internal_call=not at_end)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.steps_finished()
        return _trainer(super())._finalize_training(*args, **kwargs)

    def steps_finished(self) -> None:
        """Called after the last step, before the best checkpoint is loaded and others are removed. No
        callback is called at that point."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.gradient_norm(model, grad_norm)

    def gradient_norm(self, model: Any, grad_norm: Any) -> Any:
        """The norm of the gradient, after clipping and right before the optimizer's step.
        `on_pre_optimizer_step` does not get the norm, and cannot leave it out of the log."""
        return _trainer(super())._get_grad_norm(model, grad_norm=grad_norm)

    read_from: str = ""
    """The checkpoint that is being loaded."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        self.read_from = resume_from_checkpoint
        with _reading_versions(), self.loading(resume_from_checkpoint):
            _trainer(super())._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def loading(self, checkpoint: str) -> AbstractContextManager[None]:
        """Entered while the weights of a checkpoint are loaded, for errors that say nothing to users."""
        return contextlib.nullcontext()

    def _load_best_model(self) -> None:
        self.read_from = str(_trainer(self).state.best_model_checkpoint)
        _trainer(super())._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self.weights_loaded(load_result, self.read_from)

    def weights_loaded(self, load_result: Any, checkpoint: str) -> None:
        """Called with the missing and unexpected weights of a checkpoint that has been loaded into the whole
        model. The Trainer only logs them, and nothing public is called at that point."""
        _trainer(super())._issue_warnings_after_load(load_result)

    def _load_callback_state(self) -> None:
        # It recreates callbacks from their saved state, which is impossible for one that holds its
        # trainer.
        trainer = _trainer(self)
        known = trainer.state.stateful_callbacks
        own = {type(each).__name__ for each in trainer.callback_handler.callbacks if hasattr(each, "resumes")}
        kept = {name: known.pop(name) for name in own & known.keys()}
        _trainer(super())._load_callback_state()
        known.update(kept)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *rest: Any) -> Any:
        trainer = _trainer(super())
        packing = rest[0] is True  # sft's; the other trainers have a name there
        return self.prepare_rows(
            dataset, args, packing, lambda rows: trainer._prepare_dataset(rows, processing_class, args, *rest)
        )

    def prepare_rows(self, rows: Any, args: Any, packing: bool, prepared: Callable[[Any], Any]) -> Any:
        """The rows in the form that the trainer expects for its arguments `args`; `prepared` returns TRL's
        own result. Only sft has `skip_prepare_dataset`, which also skips packing."""
        return prepared(rows)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        sampler = _trainer(super())._get_train_sampler(*args, **kwargs)
        seed = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
        if isinstance(sampler, BatchRebalanceSampler):
            sampler.seed = seed  # the Trainer leaves its default
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        sampler.batch_size *= (
            trainer.args.world_size
        )  # rows of one step are of similar length in all processes
        return GroupedByEpoch(sampler, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """The Trainer's; `compute_metrics` gets the rows in their order, also if the training groups them by
        length."""
        trainer: Any = self
        sampler = _trainer(super())._get_eval_sampler(eval_dataset)
        grouped = isinstance(sampler, LengthGroupedSampler) and trainer.compute_metrics is not None
        return SequentialSampler(eval_dataset) if grouped else sampler

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        return self.count_items(batch_samples, device)

    def count_items(self, batches: list[Any], device: Any) -> Any:
        """The number of trained tokens in the batches of an update. The public `get_batch_samples` calls
        this once it has collected them; they are not on the device yet."""
        return _trainer(super())._get_num_items_in_batch(batches, device)

    def _set_signature_columns_if_needed(self) -> None:
        _trainer(super())._set_signature_columns_if_needed()
        trainer = _trainer(self)
        missing = [name for name in self.more_columns if name not in trainer._signature_columns]
        trainer._signature_columns = [*trainer._signature_columns, *missing]

    more_columns: tuple[str, ...] = ()
    """Columns of the rows that are to reach the collator in addition to those of the model's forward.
    `remove_unused_columns = False` lets all others through as well."""


def _trainer(super_: Any) -> Any:
    return super_
