"""What is private to TRL's trainers, transformers' `Trainer` and accelerate, and is used all the same: each
with the public way that was not enough.

The rest of fmstune calls these functions, and overrides the methods of `PrivateHooks` under names of ours.
`tests/training/test_trl_compat.py` checks each name against the installed packages, so that an upgrade fails
there and says what moved.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import peft.peft_model
import safetensors.torch
import torch
import transformers.modeling_utils
from accelerate.data_loader import DataLoaderDispatcher, SkipBatchSampler
from accelerate.logging import MultiProcessAdapter
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints
from transformers.utils import is_triton_available
from trl.trainer.utils import FusedCausalLMOutput

from fmstune.training.tuned_trainer import TunedTrainer

__all__ = ["FusedCausalLMOutput"]  # of this file; all else is defined here

Figures = dict[str, list[Any]]


class PrivateHooks:
    """For a class right before a Trainer of TRL's: its private methods under names that classes before it
    override. A callback comes too late for each of them, and cannot change what they do."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.write_checkpoint(model, trial)

    def write_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint. `on_save` comes after it, and not at all where writing fails."""
        _trainer(super())._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.write_model(output_dir, state_dict)

    def write_model(self, output_dir: str | None, state_dict: Any) -> None:
        """Write the weights with their settings, the tokenizer and the Trainer's arguments. `save_model` is
        public, and gathers the weights of FSDP and DeepSpeed before it comes here."""
        _trainer(super())._save(output_dir, state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's. It says by a private keyword that it is its own call, of a checkpoint."""
        self.store_model(output_dir, at_end=not _internal_call)

    def store_model(self, output_dir: str | None, *, at_end: bool) -> None:
        """Save the model: of a checkpoint, or `at_end` of the run."""
        _trainer(super()).save_model(output_dir, _internal_call=not at_end)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.steps_are_over()
        return _trainer(super())._finalize_training(*args, **kwargs)

    def steps_are_over(self) -> None:
        """The last step is made, and the best checkpoint is not loaded yet, nor are others removed: no
        callback is called then."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.gradient_norm(model, grad_norm)

    def gradient_norm(self, model: Any, grad_norm: Any) -> Any:
        """The norm of the clipped gradient, the last that happens before the optimizer's step with the norm
        known. `on_pre_optimizer_step` does not get the norm, and cannot leave it out of the log."""
        return _trainer(super())._get_grad_norm(model, grad_norm=grad_norm)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self.report_loaded(load_result)

    def report_loaded(self, load_result: Any) -> None:
        """Warn of weights that a checkpoint lacks or has too many of, which nothing public filters."""
        _trainer(super())._issue_warnings_after_load(load_result)

    def _load_callback_state(self) -> None:
        # It makes new callbacks of what a checkpoint has of them, which one that knows its trainer cannot be.
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
        """The rows as the trainer takes them, by its arguments `args`; `prepared` makes what TRL does.
        `skip_prepare_dataset` is sft's alone, and then there is no packing."""
        return prepared(rows)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        return self.count_items(batch_samples, device)

    def count_items(self, batches: list[Any], device: Any) -> Any:
        """The number of trained tokens in the batches of an update. `get_batch_samples`, which is public, has
        put the batches together by then, and moves none of them."""
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


# Figures: TRL logs the mean of what it notes at each batch, and has no way to take a batch out of it.


def _noted(trainer: Any) -> dict[str, Figures]:
    # Of TRL's stable trainers, and of its experimental ones.
    found: dict[str, Figures] = getattr(trainer, "_metrics", None) or getattr(trainer, "_stored_metrics", {})
    return found


def noted_figures(trainer: Any, stage: str) -> Figures:
    """What the trainer has noted of its batches since the last log, to be changed in place."""
    noted = _noted(trainer)
    # Those of experimental trainers make what is missing; of a trainer that is being built there are none.
    return noted[stage] if stage in noted or isinstance(noted, defaultdict) else {}


def tokens_seen(trainer: Any) -> int:
    """How many tokens of the training the trainer has counted in this process."""
    return int(getattr(trainer, "_total_train_tokens", 0))


def count_tokens(trainer: Any, tokens: int) -> None:
    """Note that a batch with so many tokens was read, for a trainer of TRL's that does not count them."""
    trainer._total_train_tokens = tokens_seen(trainer) + tokens
    noted_figures(trainer, "train")["num_tokens"] = [float(trainer._total_train_tokens)]  # it takes a mean


@contextlib.contextmanager
def figures_restored(trainer: TunedTrainer) -> Iterator[None]:
    """As if there had been no batches within: their figures, and how many tokens were seen, are forgotten."""
    this: Any = trainer
    noted = {stage: dict(values) for stage, values in _noted(this).items()}
    tokens = tokens_seen(this)
    try:
        yield
    finally:
        this._total_train_tokens = tokens
        for stage, values in _noted(this).items():
            values.clear()
            values.update(noted.get(stage, {}))


# Steps outside of `Trainer.train`, which has no dry run.


def on_device(trainer: TunedTrainer, batch: Any) -> Any:
    """A batch of the collator as `compute_loss` takes it."""
    this: Any = trainer
    return this._prepare_inputs(batch)


def offloading(trainer: TunedTrainer) -> Any:
    """The context in which activations are offloaded, if the arguments want that: TRL enters it within
    `training_step`, which makes a backward pass with what only `train` has set up."""
    return getattr(trainer, "maybe_activation_offload_context", contextlib.nullcontext())


def forget_optimizer(trainer: TunedTrainer) -> None:
    """Let `train` make its optimizer and schedule itself: it keeps a schedule that it takes for its own."""
    this: Any = trainer
    this.optimizer = this.lr_scheduler = None
    this._created_lr_scheduler = False


def write_optimizer(trainer: TunedTrainer, folder: Path) -> None:
    """Write the state of the optimizer as a checkpoint has it; `save_state` does not."""
    this: Any = trainer
    this._save_optimizer_and_scheduler(str(folder))


def save_for_checkpoint(trainer: TunedTrainer, folder: Path) -> None:
    """Save the model as a checkpoint has it; plain `save_model` is the end of the run."""
    this: Any = trainer
    this.save_model(str(folder), _internal_call=True)


def write_parts(trainer: TunedTrainer, folder: Path, named: Path) -> None:
    """Write into a folder what `_save_checkpoint` puts into the checkpoint `named`, which it writes in place,
    file by file. Of one process, without sharding; older checkpoints stay, and nothing goes to the hub."""
    this: Any = trainer
    state, args = this.state, this.args
    this.store_flos()
    this.save_model(str(folder), _internal_call=True)
    if args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH, SaveStrategy.BEST):
        best = named.with_name(f"checkpoint-{state.best_global_step}")
        if state.best_global_step and (best == named or best.exists()):
            state.best_model_checkpoint = str(best)
    if not args.save_only_model:
        this._save_optimizer_and_scheduler(str(folder))
        this._save_scaler(str(folder))
        this._save_rng_state(str(folder))
    kept = state.stateful_callbacks
    for each in [*this.callback_handler.callbacks, this.control]:
        if isinstance(each, ExportableState):
            name = type(each).__name__
            if isinstance(kept[name], list):
                kept[name].append(each.state())
            else:
                kept[name] = each.state()
    state.save_to_json(str(folder / "trainer_state.json"))


def remove_old_checkpoints(trainer: TunedTrainer, best: str | None) -> None:
    """Remove those that `save_total_limit` has no place for, as the Trainer does after each new one."""
    args = trainer.args
    rotate_checkpoints(
        output_dir=args.output_dir, save_total_limit=args.save_total_limit, best_model_checkpoint=best,
        use_mtime=True,
    )  # fmt: skip


_LARGE = 1 << 20
_SAVERS: tuple[tuple[Any, str], ...] = (
    (transformers.modeling_utils, "safe_save_file"),
    (peft.peft_model, "safe_save_file"),
    (torch, "save"),
)


@dataclass(frozen=True, slots=True)
class FileLater:
    """A file that is to be written from a copy of so many bytes."""

    size: int
    write: Callable[[], None]


@contextlib.contextmanager
def large_files_later(short: Callable[[], None] | None = None) -> Iterator[list[FileLater]]:
    """What the libraries write in this thread within is written, but for large tensors: these are copied, and
    what is yielded writes their files from the copies. `save_pretrained` has no way to be asked for that.

    An object that holds anything but tensors, numbers and texts in plain containers is written at once. Where
    there is no memory for a copy, `short` is called, and all that was put off is written first: its copies
    take what writing needs.
    """
    later: list[FileLater] = []
    thread = threading.get_ident()
    given = [getattr(module, name) for module, name in _SAVERS]

    def copied(value: Any) -> Any:
        try:
            return _copied(value, {}) if threading.get_ident() == thread else None
        except TypeError:
            return None
        except MemoryError:
            pass  # what was copied of the value is free only when its frames are
        while later:
            later.pop(0).write()
        if short is not None:
            short()
        return None

    def save_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
        def write(tensors: Any) -> None:
            safetensors.torch.save_file(tensors, filename, metadata=metadata)

        put_off(copied(dict(tensors)), tensors, write)

    def save(value: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        def write(value: Any) -> None:
            given[-1](value, f, *args, **kwargs)

        plain = isinstance(f, str) and not args and not kwargs and _size_of(value) >= _LARGE
        put_off(copied(value) if plain else None, value, write)

    def put_off(copy: Any, value: Any, write: Callable[[Any], None]) -> None:
        if copy is None:
            write(value)
        else:
            later.append(FileLater(_size_of(copy), functools.partial(write, copy)))

    try:
        for (module, name), mine in zip(_SAVERS, (save_file, save_file, save), strict=True):
            setattr(module, name, mine)
        yield later
    finally:
        for (module, name), before in zip(_SAVERS, given, strict=True):
            setattr(module, name, before)


def _size_of(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return int(value.numel() * value.element_size())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_size_of(each) for each in parts)


def _copied(value: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    """A copy in main memory of all that is in plain containers. Raises `TypeError` for other things, such as
    tensors of other classes, or of a part of their storage, which `torch.save` writes as what they are; and
    `MemoryError`."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, torch.dtype):
        return value
    if id(value) in known:
        return known[id(value)][1]
    if kind is dict:
        made: Any = {key: _copied(item, known) for key, item in value.items()}
    elif kind in (list, tuple):
        made = kind(_copied(item, known) for item in value)
    elif kind is torch.Tensor and value.layout == torch.strided:
        made = _copied_tensor(value, known)
    else:
        raise TypeError(kind)
    known[id(value)] = value, made  # with the value, whose number another would get
    return made


def _copied_tensor(value: torch.Tensor, known: dict[int, tuple[Any, Any]]) -> torch.Tensor:
    storage = value.untyped_storage()
    place = -storage.data_ptr()
    whole = storage.nbytes() == value.numel() * value.element_size()
    if value.is_meta or value.requires_grad or not whole or (place and place in known):
        raise TypeError(value)
    known[place] = storage, None
    try:
        made = torch.empty_like(value, device="cpu")
    except RuntimeError as error:  # torch has no class of its own for main memory
        raise MemoryError(str(error)) from error
    return made.copy_(value)


def load_checkpoint(trainer: TunedTrainer, folder: str) -> None:
    """Load the weights of a checkpoint. `train(resume_from_checkpoint=…)` would make one more step."""
    this: Any = trainer
    this._load_from_checkpoint(folder)


def set_batch(trainer: TunedTrainer, size: int, accumulation: int) -> None:
    """Give a built trainer another size of a batch: it has taken a copy of the arguments' for its loaders."""
    this: Any = trainer
    args = this.args
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, accumulation
    this._train_batch_size = args.train_batch_size
    this.batch_size_changed()


def set_padding_free(trainer: TunedTrainer, avoided: bool) -> None:
    """Let an sft trainer do with or without padding. As an argument it is checked before there is a model to
    be asked."""
    this: Any = trainer
    this.data_collator.padding_free = this.padding_free = avoided


# What the trainers have decided by their arguments, and keep to themselves.


def compares_within_batch(trainer: Any) -> bool:
    """Whether kto compares each row with the others of its batch; a list of losses decides it."""
    return bool(getattr(trainer, "calculate_KL", False))


def gathered(trainer: Any, rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, without those that fill up the last batch: as the evaluation gathers its
    losses. `accelerator.gather_for_metrics` is the public way, which `eval_use_gather_object` changes."""
    found: torch.Tensor = trainer.gather_function(rows)
    return found


@contextlib.contextmanager
def evaluation_gathers(trainer: TunedTrainer, gather: Callable[[Any], Any]) -> Iterator[None]:
    """Let an evaluation gather what it hands to `compute_metrics`, and the losses, in another way."""
    this: Any = trainer
    before, this.gather_function = this.gather_function, gather
    try:
        yield
    finally:
        this.gather_function = before


@dataclass(frozen=True, slots=True)
class LastBatch:
    """The last batch of an epoch: the rows that were left for it, and those of all processes `together`."""

    rest: int
    together: int


def last_batch(trainer: TunedTrainer) -> LastBatch | None:
    """The batch that was just read, where it is the last one. accelerate fills it up, and knows by how much
    for `gather_for_metrics` alone, which is too late for the loss."""
    state = trainer.accelerator.gradient_state
    if not state.end_of_dataloader:
        return None
    loader, processes = state.active_dataloader, trainer.args.world_size
    if isinstance(loader.batch_sampler, SkipBatchSampler):
        return _last_of_rest(loader)
    # -1 where the length is not known, 0 where the last batch is full.
    if state.remainder <= 0:
        return None
    if isinstance(loader, DataLoaderDispatcher):  # it divides what is left among all
        return LastBatch(state.remainder, -(-state.remainder // processes) * processes)
    return LastBatch(state.remainder, loader.total_batch_size)


def _last_of_rest(loader: Any) -> LastBatch | None:
    """The last batch of an epoch resumed in the middle. accelerate's sampler that skips batches has no
    size, and its loader does not know then that the last one was filled up."""
    sampler = loader.batch_sampler
    while isinstance(sampler, SkipBatchSampler):
        sampler = sampler.batch_sampler
    # As `DataLoaderShard.total_batch_size` has it.
    several = 1 if getattr(sampler, "split_batches", False) else getattr(sampler, "num_processes", 1)
    together = sampler.batch_size * several
    rest = len(loader.dataset) % together
    return None if sampler.drop_last or not rest else LastBatch(rest, together)


@contextlib.contextmanager
def gathering(accelerator: Any, gather: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let TRL gather its figures in another way: it asks the accelerator, and takes no function for it."""
    accelerator.gather = accelerator.gather_for_metrics = gather
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def smooths_labels(trainer: Any) -> bool:
    """Whether the Trainer computes the loss itself, with smoothed labels."""
    return trainer.label_smoother is not None


def scales_loss(trainer: Any) -> bool:
    """Whether the loss is scaled, as for fp16. `accelerator.optimizer_step_was_skipped` comes after it."""
    return getattr(trainer.accelerator, "scaler", None) is not None


def is_device_out_of_memory(error: Exception) -> bool:
    """accelerate's list of what devices say when their memory is not enough; `find_executable_batch_size`
    is what it is meant for, and starts the whole training again."""
    return bool(should_reduce_batch_size(error))


# TRL's fused LM head. `add_fused_lm_head` is public; that a trainer's model has it is not.

Plain = Callable[..., Any]


class Scored(Protocol):
    """A way to score labels: from the model's forward without the head, or TRL's `fused` one."""

    def __call__(
        self,
        model: PreTrainedModel,
        plain: Plain,
        fused: Callable[..., FusedCausalLMOutput],
        args: Any,
        kwargs: Any,
        labels: Any,
        shifted: Any,
        items: Any,
    ) -> FusedCausalLMOutput:
        """The figures of each labelled position."""


def score_by(model: PreTrainedModel, scored: Scored) -> None:
    """Have `model`, which has TRL's fused LM head already, score labels in another way."""
    through_trl = model.forward
    plain = functools.partial(through_trl, fused_lm_head=False)
    fused = functools.partial(through_trl, fused_lm_head=True)

    @functools.wraps(through_trl)  # its signature is asked which arguments the model takes, by `generate` too
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain(*args, **kwargs)
        labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
        items = kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        return scored(self, plain, fused, args, kwargs, labels, shifted, items)

    model.forward = types.MethodType(forward, model)


def scores_labelled_alone(device: torch.device) -> bool:
    """Whether TRL's LM head computes no logits for positions without a label, as it does where Triton is."""
    return device.type in ("cuda", "xpu") and is_triton_available()


FUSED = {"fused_lm_head": True}
"""The keyword by which a model's forward is asked for `FusedCausalLMOutput`."""


def is_fused(output: Any) -> bool:
    """Whether an output is the fused head's, and not the logits that `compute_metrics` gets."""
    return hasattr(output, "label_mask")


# TRL's words. It warns through a logger of accelerate's, each text once in the life of a process.

_RANK = re.compile(r"^\[RANK \d+\] ")


@contextlib.contextmanager
def said_by_trl() -> Iterator[list[str]]:
    """Without bars, and with TRL's warnings collected instead of printed. `warnings` has none of them, and
    `disable_progress_bars` of transformers is not for tqdm's own."""
    said: list[str] = []
    heard = logging.Handler(logging.WARNING)
    heard.emit = lambda record: said.append(_RANK.sub("", record.getMessage()))  # type: ignore[method-assign]
    logger, bars = logging.getLogger("trl"), datasets.is_progress_bar_enabled()
    propagate, tqdm = logger.propagate, os.environ.get("TQDM_DISABLE")
    logger.addHandler(heard)
    logger.propagate = False
    # What was said once in this process is otherwise not said of the next run in it.
    MultiProcessAdapter.warning_once.cache_clear()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield said
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagate
        if bars:
            datasets.enable_progress_bars()
        if tqdm is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm
