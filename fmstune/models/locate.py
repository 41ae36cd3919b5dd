"""Locate the model of a run, a checkpoint, an adapter or a model directory, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fmstune import demo
from fmstune.config.paths.hub import may_be_on_the_hub
from fmstune.config.paths.models import (
    ADAPTER_CONFIG,
    AdapterFile,
    holds_adapter,
    is_reward_model,
    read_adapter,
    split_gguf,
)
from fmstune.config.paths.runs import RUNS, holds_run, means_run, nearest_run, no_such_run
from fmstune.config.rules.adapters import gguf_problem
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError, ModelError
from fmstune.models.checkpoints import is_half_saved, newest_weights

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """`path` is what can be loaded: a directory, a GGUF file, or a name on the hub. `adapter` is the adapter
    in it, if any; `checkpoint`: the run has not finished, and this is its newest one; `is_reward_model`: the
    model outputs numbers for texts, as a reward model does, and cannot generate."""

    path: str
    adapter: AdapterFile | None = None
    checkpoint: bool = False
    is_reward_model: bool = False


def locate(named: str) -> Place:
    """Resolve `named`. Raises `ModelError` if there is nothing there."""
    path = Path(named)
    problem = gguf_problem(named, None)
    if problem is not None:
        raise ModelError(f"{named}: {problem}")
    if path.is_dir():
        return _in_directory(path)
    if path.exists() and path.suffix.lower() != ".gguf":
        raise ModelError(f"{named} is a file; give the directory of a run, a model or an adapter.")
    if _one_word(named) and not path.exists() and holds_run(RUNS / named):
        raise ModelError(f"there is no directory {named} here. Did you mean {RUNS / named}?")
    if not path.exists() and means_run(named):
        raise ModelError(no_such_run(path))
    if not path.exists() and not demo.is_demo(named) and not may_be_on_the_hub(named, one_word=True):
        raise ModelError(
            f"{named}: there is no such directory (looked for from {Path.cwd()}).{nearest_run(path)}"
        )
    return Place(named)


def use(named: str, place: Place, work: Callable[[Place], T]) -> T:
    """Work with the place of `named`. A run that is going removes its checkpoint once it has a newer one,
    which is used then."""
    while True:
        try:
            return work(place)
        except Exception:  # each library has its own for a file that is gone
            if not place.checkpoint or (newer := locate(named)).path == place.path:
                raise
            place = newer


def _in_directory(path: Path) -> Place:
    checkpoint = newest_weights(path)
    saved = holds_adapter(path) or (path / "config.json").is_file()
    if saved and (checkpoint is None or not is_half_saved(path, checkpoint)):
        return _place(path, checkpoint=False)
    files = sorted(str(entry) for entry in path.glob("*.gguf"))
    if checkpoint is None and files:
        raise ModelError(f"{path} holds no model but GGUF files; give one of them, such as {files[0]}.")
    if checkpoint is None:
        below = next((str(each.parent) for each in sorted(path.glob(f"*/{ADAPTER_CONFIG}"))), None)
        raise ModelError(
            f"{path} holds no model, no adapter and no checkpoint: there is neither config.json nor "
            f"{ADAPTER_CONFIG} in it." + (f" Did you mean {below}?" if below else "")
        )
    return _place(checkpoint, checkpoint=True)


def _place(path: Path, *, checkpoint: bool) -> Place:
    _require_one(path)
    if not holds_adapter(path):
        return Place(str(path), None, checkpoint, is_reward_model(path))
    try:
        adapter = read_adapter(path)
    except ConfigError as error:
        raise ModelError(str(error)) from error
    return Place(str(path), adapter, checkpoint, adapter.is_reward_model)


def _one_word(named: str) -> bool:
    """`gpt2` and `demo`: hub names without an owner, and our own."""
    return "/" not in named


def require_local_model(config: ModelConfig) -> None:
    """Report a local path without a model at once, before a request to the hub."""
    path, name = split_gguf(config.path, config.gguf_file)
    if demo.is_demo(path):
        return
    if Path(path).is_dir():
        if name is None:
            _require_one(Path(path))
        if name is not None and not (Path(path) / name).is_file():
            raise ModelError(f"model.path = {path!r} holds no file {name!r}.")
        if name is not None:
            return
        if (Path(path) / "config.json").exists():
            require_complete(Path(path))
            return
        raise ModelError(f"model.path = {path!r} holds no model: {_hint(Path(path))}.")
    if Path(path).exists():
        raise ModelError(f"model.path = {path!r} is a file; give the directory that holds the model.")
    if not may_be_on_the_hub(path, one_word=True):
        raise ModelError(f"model.path = {path!r}: there is no such directory (looked for from {Path.cwd()}).")


def require_complete(directory: Path) -> None:
    """Raise `ModelError` for a run that was killed while it saved its model or adapter."""
    checkpoint = newest_weights(directory)
    if checkpoint is not None and is_half_saved(directory, checkpoint):
        raise ModelError(f"model.path = {str(directory)!r} is not complete: {_hint(directory)}.")


def _require_one(directory: Path) -> None:
    """Raise `ModelError` for a directory with both a model and an adapter: transformers would load the
    adapter's base model in place of the model."""
    if (directory / ADAPTER_CONFIG).is_file() and not holds_adapter(directory):
        raise ModelError(
            f"{directory} holds both a whole model and an adapter ({ADAPTER_CONFIG}), so that it is unclear "
            "which is meant: move one of them to another directory."
        )


def _hint(directory: Path) -> str:
    """Why there is no model in a directory, and what in it could be used."""
    files = sorted(entry.name for entry in directory.glob("*.gguf"))
    if files:
        return f"give one of its GGUF files, such as {str(directory / files[0])!r}"
    checkpoint = newest_weights(directory)
    if checkpoint is not None:
        return f"its run did not finish; give its newest checkpoint, {str(checkpoint)!r}"
    return "there is no config.json in it"
