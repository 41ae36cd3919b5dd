"""Save the model as its users expect it: weights in their original type, and original settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from fmstune.models.base_weights import record
from fmstune.system.files import copy_mode
from fmstune.transformers_compat import kept_in_float32

_MISSING = object()
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


TRAINING_CHANGES = ("use_cache", "output_router_logits")
"""Settings that the Trainer and TRL change for the training. Saved like that, a model would not generate with
a cache, and a mixture of experts, which would compute their loss, would fail with a batch of prompts."""


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """What the model's files say before training: the type of its weights, if recorded, the settings that
    training changes (see `settings_to_keep`), and a fingerprint of the weights below an adapter, if they are
    on this machine."""

    dtype: torch.dtype | None = None
    settings: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    weights: str | None = None


class SavesInOriginalDtype:
    """A mixin for a Trainer, before it and before its `PrivateHooks`.

    Trained weights are held in float32, and checkpoints keep full precision; the final model of a run is
    saved in `save_dtype`, else in the type of the original files. A bfloat16 model would otherwise become
    twice as large. Settings that only the training needs are not saved.
    """

    own_files = OwnFiles()
    save_dtype: str = "auto"
    _at_end = False

    def store_model(self, output_dir: str | None, *, at_end: bool) -> None:
        """The Trainer's; calls `write_model`."""
        saver: Any = super()
        self._at_end = at_end
        try:
            saver.store_model(output_dir, at_end=at_end)
        finally:
            self._at_end = False

    def saved_dtype(self) -> torch.dtype | None:
        """The type of the weights in the final model; `None` for the one they are held in."""
        trainer: Any = self
        if self.save_dtype in _DTYPES:
            return _DTYPES[self.save_dtype]
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        return None if isinstance(model, PeftModel) else self.own_files.dtype

    def write_model(self, output_dir: str | None, state_dict: Any) -> None:
        """The Trainer's, for weights in their final type."""
        trainer: Any = self
        saver: Any = super()
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        if state_dict is not None:  # gathered from the processes by FSDP or DeepSpeed
            state_dict = tied_again(state_dict, model)
        dtype = self.saved_dtype() if self._at_end else None
        if dtype is not None:
            state_dict = in_dtype(model.state_dict() if state_dict is None else state_dict, dtype, model)
        with _own_settings(model, self.own_files.settings):
            saver.write_model(output_dir, state_dict)
        if trainer.args.should_save:
            folder = Path(output_dir or trainer.args.output_dir)
            if isinstance(model, PeftModel) and self.own_files.weights is not None:
                record(folder, self.own_files.weights)
            share_weights(folder)  # files delayed by `large_files_later` get it when they are written
            if dtype is not None:
                _name_dtype(folder / "config.json", dtype)


def share_weights(folder: Path) -> None:
    """Give weight files the mode of the configuration next to them.

    safetensors makes them private to the user, whatever the umask (seen with 0.8.0): colleagues on a cluster
    could not load the model.
    """
    # Several adapters have separate folders. A run's other folders may be on another disk, and fail.
    for name, _, files in os.walk(folder):
        beside = next((each for each in files if each.endswith("config.json")), None)
        for file in (each for each in files if each.endswith(".safetensors")):
            if beside is not None and os.access(Path(name, file), os.W_OK):
                copy_mode(Path(name, beside), Path(name, file))


def in_dtype(weights: Mapping[str, torch.Tensor], dtype: torch.dtype, model: Any) -> dict[str, torch.Tensor]:
    """Convert weights to another type, except those that the model's class requires in float32, and those
    below an adapter; tensors that share memory, like tied embeddings, still do."""
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    only = trained if isinstance(model, PeftModel) else weights.keys()
    kept = kept_in_float32(model)
    made: dict[tuple[int, torch.Size], torch.Tensor] = {}
    found = {}
    for name, tensor in weights.items():
        if name not in only or not tensor.is_floating_point() or any(part in name for part in kept):
            found[name] = tensor
            continue
        key = (tensor.data_ptr(), tensor.shape)
        if key not in made:
            made[key] = tensor.to(dtype)
        found[name] = made[key]
    return found


def tied_again(weights: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Let tied weights, like embeddings, share memory as in the model. With FSDP, and at ZeRO 1 and 2, each
    is a copy of its own, and a file would hold them twice."""
    first: dict[int, torch.Tensor] = {}
    tied = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    return {
        name: first.setdefault(tied[name], tensor) if name in tied else tensor
        for name, tensor in weights.items()
    }


def settings_to_keep(config: Any) -> dict[tuple[str, str], Any]:
    """The model's own values of the settings that training changes, by their part of the config and name."""
    return {
        (part, name): getattr(settings, name)
        for part, settings in _parts(config).items()
        for name in TRAINING_CHANGES
        if hasattr(settings, name)
    }


def _parts(config: Any) -> dict[str, Any]:
    """A model's settings, and those of its text part, which for most are the same."""
    return {"model": config, "text": config.get_text_config()}


@contextmanager
def _own_settings(model: Any, own: Mapping[tuple[str, str], Any]) -> Iterator[None]:
    parts = _parts(model.config)
    places = [(part, name) for part in parts for name in TRAINING_CHANGES]
    training = {place: vars(parts[place[0]]).get(place[1], _MISSING) for place in places}
    _set(parts, {place: own.get(place, _MISSING) for place in places})
    try:
        yield
    finally:
        _set(parts, training)


def _set(parts: Mapping[str, Any], values: Mapping[tuple[str, str], Any]) -> None:
    for (part, name), value in values.items():
        if value is not _MISSING:
            setattr(parts[part], name, value)
        else:
            vars(parts[part]).pop(name, None)


def _name_dtype(file: Path, dtype: torch.dtype) -> None:
    """Record the type of the saved weights in the configuration, in place of the in-memory one."""
    if not file.exists():
        return  # an adapter has none
    settings = json.loads(file.read_text(encoding="utf-8"))
    held = settings.get("dtype")
    for part in (settings, *settings.values()):
        if isinstance(part, dict) and part.get("dtype") == held:
            part["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
