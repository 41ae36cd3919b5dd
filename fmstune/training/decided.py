"""The settings that a run has decided: the trainer's arguments that the configuration left open."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmstune.config.inspect.decided import decided_by
from fmstune.config.inspect.explain import explain
from fmstune.config.schema.managed import OWNED_TRAINING, RENAMED_TRAINING
from fmstune.config.schema.tables import RunConfig
from fmstune.config.schema.training import training_fields
from fmstune.text import shown

if TYPE_CHECKING:
    from fmstune.training.build import BuiltTrainer

_OURS = ("output_dir", "max_length", "padding_free")
"""Fields that fmstune implements itself and hides from TRL."""
_OF_THE_MACHINE = ("bf16", "fp16", "use_cpu")
"""Fields that change the numbers, and are decided by the device and the environment alone."""


def decided(config: RunConfig, built: BuiltTrainer) -> dict[str, Any]:
    """The fields of `[training]` that this run has decided, with their values."""
    args = built.trainer.args
    found: dict[str, Any] = {}
    for name in training_fields(config.run.method):
        if name in OWNED_TRAINING or name in RENAMED_TRAINING or name in _OURS:
            continue
        configured, used = explain(config, f"training.{name}").value, plain(getattr(args, name))
        if decided_by(config, name) or not same(configured, used):
            found[name] = used
    if built.padding is not None and decided_by(config, "padding_free"):
        found["padding_free"] = built.padding.avoided
    return found


def changed_decisions(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What the parts of a resumed run decided differently about precision and device, since their machines or
    environments differ: `training.bf16 (true → false; it stays with --set training.bf16=true)`."""
    return ", ".join(
        f"training.{name} ({shown(before[name])} → {shown(now[name])}; it stays with "
        f"--set training.{name}={shown(before[name])})"
        for name in _OF_THE_MACHINE
        if name in before and name in now and before[name] != now[name]
    )


def plain(value: Any) -> Any:
    """A TRL argument in the form of a configuration value."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def same(configured: Any, used: Any) -> bool:
    """Whether a value of the configuration and an argument mean the same, however they are written."""
    if isinstance(configured, Mapping) and isinstance(used, Mapping):
        return all(same(value, used.get(name)) for name, value in configured.items())
    if isinstance(configured, str) and isinstance(used, list):  # one of several, or words in a string
        return configured.split() == used
    if not configured and isinstance(used, Mapping):  # all defaults
        return True
    return bool(
        configured == used or (not configured and not used and (configured is None) != (used is None))
    )
