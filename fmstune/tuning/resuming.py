"""Going on from a checkpoint: whether it fits the run, and what is left to do when all steps are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fmstune.config.compare import read_tables
from fmstune.config.errors import ConfigError
from fmstune.config.schema import RunConfig
from fmstune.tuning.directory import CONFIG_NAME

_KINDS = {"LORA": "lora", "PROMPT_TUNING": "prompt tuning"}
_HOW = {"lora": "a LoRA adapter (--lora)", "prompt tuning": "a tuned prompt (prompt_tuning.enabled)"}
_WHOLE = "all weights"


def require_fitting(checkpoint: Path, config: RunConfig) -> None:
    """Raise `ConfigError` when the checkpoint is of another kind of training than `config` describes: its
    weights would not fit, which the libraries tell in a line for each of them."""
    where = f"--resume {checkpoint}"
    adapter = _adapter(checkpoint)
    there = _KINDS.get(str(adapter.get("peft_type"))) if adapter else None
    if there != config.adapter:
        trained, asked = _HOW.get(there or "", _WHOLE), _HOW.get(config.adapter or "", _WHOLE)
        raise ConfigError(f"{where}: this checkpoint is of a run that trains {trained}, not {asked}.")
    if there == "lora" and adapter.get("r") not in (None, config.lora.r):
        raise ConfigError(
            f"{where}: its adapter has lora.r = {adapter['r']}, this run {config.lora.r}; make them the same."
        )
    method = _tables(checkpoint).get("run", {}).get("method", config.run.method)
    if method != config.run.method:
        raise ConfigError(
            f"{where}: it is of a run with --method {method}, this one is {config.run.method}; to begin with "
            f"its weights, give it as --model {checkpoint}."
        )


def finish(trainer: Any, checkpoint: Path) -> None:
    """Bring the trainer to where it was at the checkpoint, after which no step is left: transformers would
    make one more. With the best weights where those are to be kept."""
    from transformers import TrainerState

    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    chosen = best if best and Path(best).is_dir() else str(checkpoint)
    trainer._load_from_checkpoint(chosen)


def _adapter(checkpoint: Path) -> dict[str, Any]:
    try:
        found = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tables(checkpoint: Path) -> dict[str, Any]:
    """The configuration of the run that the checkpoint is of; nothing when it is not beside it."""
    if not (checkpoint.parent / CONFIG_NAME).exists():
        return {}
    return read_tables(checkpoint.parent, CONFIG_NAME)
