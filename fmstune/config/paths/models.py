"""Inspect a model's directory or file, without heavy imports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.errors import ConfigError
from fmstune.text import shown, shown_path

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter on disk. `kind` is PEFT's type (`LORA`); `base` the base model that the adapter names, and
    `revision` that model's branch or commit on the hub."""

    directory: Path
    kind: str
    base: str
    revision: str | None
    settings: Mapping[str, Any]

    @property
    def is_reward_model(self) -> bool:
        """Whether it is for a reward model, which scores text, rather than a language model."""
        return self.settings.get("task_type") == "SEQ_CLS"

    def as_settings(self) -> dict[str, Any]:
        """Its values for the settings of `[lora]` or `[prompt_tuning]`; empty for other kinds."""
        own = self.settings
        if self.kind == "PROMPT_TUNING":
            return {
                "prompt_tuning.enabled": True,
                "prompt_tuning.tokens": own.get("num_virtual_tokens"),
                "prompt_tuning.text": own.get("prompt_tuning_init_text"),
            }
        if self.kind != "LORA":
            return {}
        targets = own.get("target_modules")
        found = {
            "lora.enabled": True,
            "lora.r": own.get("r"),
            "lora.alpha": own.get("lora_alpha"),
            "lora.dropout": own.get("lora_dropout"),
            "lora.bias": own.get("bias"),
            "lora.target_modules": tuple(sorted(targets)) if isinstance(targets, list) else targets,
            "lora.target_parameters": tuple(sorted(own.get("target_parameters") or ())),
            "lora.rslora": bool(own.get("use_rslora")),
            "lora.dora": bool(own.get("use_dora")),
            "lora.modules_to_save": tuple(sorted(own.get("modules_to_save") or ())),
        }
        return {key: value for key, value in found.items() if value is not None}


def holds_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter rather than the weights of a full model."""
    return (directory / ADAPTER_CONFIG).is_file() and not any(
        next(directory.glob(pattern), None) for pattern in _WEIGHTS
    )


def is_reward_model(directory: Path) -> bool:
    """Whether a directory with a full model holds a reward model, or another classifier."""
    try:
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return any("Classification" in name for name in settings.get("architectures") or ())
    except (OSError, ValueError, AttributeError, TypeError):
        return False  # loading it reports what is wrong


def read_adapter(directory: Path) -> AdapterFile:
    """Read the adapter in a directory. Raises `ConfigError`."""
    path = directory / ADAPTER_CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown_path(path)} cannot be read: {error}.") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if not isinstance(kind, str):
        raise ConfigError(f"{shown_path(path)} is not the configuration of an adapter: it has no peft_type.")
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    return AdapterFile(directory, kind, base if isinstance(base, str) else "", revision or None, settings)


def with_adapter(checked: dict[str, Any], origins: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """If `model.path` is an adapter, add its settings to the checked settings.

    Returns the origin of each. Raises `ConfigError` if a given setting differs: an adapter keeps its shape
    when training continues.
    """
    path = str(checked.get("model.path", ""))
    if path in ("", "demo") or not holds_adapter(cwd / path):
        return {}
    adapter = read_adapter(cwd / path)
    own = adapter.as_settings()
    where = shown_path(Path(path))
    if not own:
        raise ConfigError(
            f"model.path = {shown(path)} is an adapter of the type {adapter.kind}; only LoRA and prompt "
            "tuning can be trained further."
        )
    enabled = next(iter(own))
    if checked.get(enabled) is False:
        raise ConfigError(
            f"{origins[enabled]}: model.path = {shown(path)} is an adapter, but {enabled} is false. To train "
            f"all weights, merge it first: fmstune merge {where} OUT."
        )
    for key, value in own.items():
        given = checked.get(key)
        if key in origins and given is not None and _comparable(given) != _comparable(value):
            raise ConfigError(
                f"{origins[key]}: {key} = {shown(given)}, but the adapter in {where} has {shown(value)}; "
                "leave it out: an adapter keeps its settings when it is trained further."
            )
    checked |= own
    return dict.fromkeys(own, str(Path(path) / ADAPTER_CONFIG))


def split_gguf(path: str, gguf_file: str | None, base: Path = Path()) -> tuple[str, str | None]:
    """Split a model's path into its location and its GGUF file, if it is one: `a/b.gguf` is `b.gguf` in `a`,
    and `owner/name/b.gguf` is in a repository of the hub, unless it exists locally."""
    if gguf_file is not None or not path.lower().endswith(".gguf"):
        return path, gguf_file
    parts = path.split("/")
    if len(parts) > 2 and not path.startswith((".", "/", "~")) and not (base / path).exists():
        return "/".join(parts[:2]), "/".join(parts[2:])
    return str(Path(path).parent), Path(path).name


def _comparable(value: Any) -> Any:
    return sorted(value) if isinstance(value, (list, tuple)) else value
