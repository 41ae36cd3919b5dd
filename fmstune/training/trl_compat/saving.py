"""Write and read the parts of a checkpoint as transformers does."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import trainer as trainer_module
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from fmstune.models.checkpoints import checkpoints, step_of
from fmstune.training.trl_compat.meanwhile import Meanwhile
from fmstune.training.trl_compat.steps import _SAVERS
from fmstune.training.tuned_trainer import TunedTrainer


def write_optimizer(trainer: TunedTrainer, folder: Path) -> None:
    """Write the optimizer state of a checkpoint, which `save_state` does not."""
    this: Any = trainer
    this._save_optimizer_and_scheduler(str(folder))


def save_for_checkpoint(trainer: TunedTrainer, folder: Path) -> None:
    """Save the model as part of a checkpoint; plain `save_model` marks the end of the run."""
    this: Any = trainer
    this.save_model(str(folder), _internal_call=True)


def copy_parts(
    trainer: TunedTrainer, folder: Path, named: Path, short: Callable[[], None]
) -> list[FileLater]:
    """Like `write_parts`, but copy the large files' contents. `short` is called if there is no memory."""
    this: Any = trainer
    meanwhile = Meanwhile()
    with large_files_later(short, meanwhile) as later:
        with meanwhile.of_tokenizer(this.processing_class):
            write_parts(trainer, folder, named)
        meanwhile.finish()
    return later


def write_parts(trainer: TunedTrainer, folder: Path, named: Path) -> None:
    """Write to a folder what `_save_checkpoint` would write, in place and file by file, to the checkpoint
    `named`. For one process, without sharding; older checkpoints stay, and nothing is pushed to the hub."""
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


def remove_old_checkpoints(trainer: TunedTrainer, newest: Path, best: str | None) -> None:
    """Remove checkpoints beyond `save_total_limit`, except the one just written and the best one.

    The Trainer does so by the times of their folders: after the clock was set back, it removes the newest.
    Those of later steps go first: the run was resumed from before them.
    """
    limit = trainer.args.save_total_limit
    if not limit or limit < 0:
        return
    kept = {newest.name, *([Path(best).name] if best is not None else [])}
    step = step_of(newest)
    found = [each for each in checkpoints(newest.parent) if each.is_dir() and each.name not in kept]
    found.sort(key=lambda each: (step_of(each) < step, step_of(each)))
    there = len(found) + sum((newest.parent / name).is_dir() for name in kept)
    for old in found[: max(0, there - max(limit, len(kept)))]:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def without_removal() -> Iterator[None]:
    """Keep the Trainer from removing old checkpoints: it has no hook for that, and `save_total_limit` is
    written into the checkpoint."""
    removal = trainer_module.rotate_checkpoints
    trainer_module.rotate_checkpoints = lambda *_, **__: None
    try:
        yield
    finally:
        trainer_module.rotate_checkpoints = removal


_LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class FileLater:
    """A file to be written later from `copies`, the copied tensors by the addresses of their originals. Of
    their bytes, `size` are freed after writing, and torch keeps `pinned` allocated."""

    size: int
    pinned: int
    copies: Mapping[int, torch.Tensor]
    write: Callable[[], None]


@contextlib.contextmanager
def large_files_later(
    short: Callable[[], None] | None = None, meanwhile: Meanwhile | None = None
) -> Iterator[list[FileLater]]:
    """Within this context, files that the libraries write in this thread are written at once, except those
    with large tensors: the tensors are copied, and the yielded objects write the files from the copies.
    `save_pretrained` has no option for that.

    An object that holds anything but tensors, numbers and strings in plain containers is written at once. If
    there is no memory for a copy, `short` is called, and all deferred files are written first, because their
    copies occupy the memory that writing needs. The work of `meanwhile` is done during the next copy.
    """
    later: list[FileLater] = []
    thread = threading.get_ident()
    given = [getattr(module, name) for module, name in _SAVERS]

    def copied(value: Any) -> tuple[Any, Mapping[int, torch.Tensor]] | None:
        known: _Known = {}
        try:
            if threading.get_ident() != thread:
                return None
            copy = _copied(value, known)
        except _NotCopyable:
            return None
        except MemoryError:
            known.clear()  # the rest of the partial copy is freed only with its frames
        else:
            with contextlib.nullcontext() if meanwhile is None else meanwhile.working():
                _fill(known)
            return copy, {-place: made for place, (_, made) in known.items() if place < 0}
        while later:
            later.pop(0).write()
        if short is not None:
            short()
        return None

    def save_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
        def write(tensors: Any) -> None:
            safetensors.torch.save_file(tensors, filename, metadata=metadata)

        defer(copied(dict(tensors)), tensors, write)

    def save(value: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        def write(value: Any) -> None:
            given[-1](value, f, *args, **kwargs)

        plain = isinstance(f, str) and not args and not kwargs and _is_large(value)
        defer(copied(value) if plain else None, value, write)

    def defer(
        found: tuple[Any, Mapping[int, torch.Tensor]] | None, value: Any, write: Callable[[Any], None]
    ) -> None:
        if found is None:
            write(value)
        else:
            copy, copies = found
            pinned = sum(pinned_size(each) for each in copies.values() if each.is_pinned())
            size = sum(_bytes(each) for each in copies.values() if not each.is_pinned())
            later.append(FileLater(size, pinned, copies, functools.partial(write, copy)))

    try:
        for (module, name), mine in zip(_SAVERS, (save_file, save_file, save), strict=True):
            setattr(module, name, mine)
        yield later
    finally:
        for (module, name), before in zip(_SAVERS, given, strict=True):
            setattr(module, name, before)


def pinned_size(tensor: torch.Tensor) -> int:
    """The bytes of pinned memory that torch allocates for a tensor: a power of two."""
    size = _bytes(tensor)
    return 1 << (size - 1).bit_length() if size else 0


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


def _is_large(value: Any) -> bool:
    """Whether an object holds `_LARGE` bytes of tensors. Stops counting there."""
    return any(size >= _LARGE for size in itertools.accumulate(map(_bytes, _tensors(value))))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


class _NotCopyable(Exception):
    """An object is not copied: it holds something else than tensors and values in plain containers."""


_Known = dict[int, tuple[Any, Any]]
"""What was copied, and its copy: by its `id`, and for tensors also by the negative address of their data."""


def _copied(value: Any, known: _Known) -> Any:
    """A copy of everything in plain containers in main memory; `_fill` copies the tensors' values. Raises
    `_NotCopyable` for anything else, such as tensor subclasses or views of a storage, which `torch.save`
    writes as such, and `MemoryError`."""
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
        raise _NotCopyable(kind)
    known[id(value)] = value, made  # keeps the value alive, as another could get its id
    return made


def _fill(known: _Known) -> None:
    """Copy the values of all tensors, in one call that holds no GIL."""
    tensors = [each for each in known.values() if type(each[0]) is torch.Tensor]
    if tensors:
        torch._foreach_copy_([made for _, made in tensors], [value for value, _ in tensors])


def _copied_tensor(value: torch.Tensor, known: _Known) -> torch.Tensor:
    storage = value.untyped_storage()
    place = -storage.data_ptr()
    whole = storage.nbytes() == value.numel() * value.element_size()
    if value.is_meta or value.requires_grad or not whole or (place and place in known):
        raise _NotCopyable(value)
    made = _empty_copy(value)
    known[place] = storage, made
    return made


def _empty_copy(value: torch.Tensor) -> torch.Tensor:
    if value.is_cuda:
        # Into pinned memory, which torch keeps for the next checkpoint, an H100 copies 1 GB in 20 ms instead
        # of 660. The limit on locked memory may be lower than the memory.
        with contextlib.suppress(RuntimeError):
            return torch.empty_like(value, device="cpu", pin_memory=True)
    try:
        return torch.empty_like(value, device="cpu")
    except RuntimeError as error:  # torch has no exception class for main memory
        raise MemoryError(str(error)) from error


def load_checkpoint(trainer: TunedTrainer, folder: str) -> None:
    """Load the weights of a checkpoint. `train(resume_from_checkpoint=…)` would train one more step."""
    this: Any = trainer
    if this.is_deepspeed_enabled or this.is_fsdp_enabled:
        # Their files are those of a divided model, and only this divides it; it loads the checkpoint as well.
        this._prepare_for_training(this.state.max_steps, this.get_train_dataloader(), folder)
    else:
        this._load_from_checkpoint(folder)
