"""TRL's arguments for a run, from its configuration."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fmstune.config.methods.known import METHODS
from fmstune.config.rules.accelerate import DYNAMIC
from fmstune.config.rules.deepspeed_table import deepspeed_table
from fmstune.config.rules.evaluation import FOLLOWING_A_METRIC
from fmstune.config.rules.parallel import fsdp_setting
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.system.device import MIXED_PRECISION, precision
from fmstune.system.kernel_builds import use_build_lock
from fmstune.text import first_line, in_series, shown
from fmstune.training.methods.trained import trained_by


def require_layers(config: RunConfig, model: Any) -> None:
    """Raise `ConfigError` if FSDP should shard layers that the model does not have."""
    key = "transformer_layer_cls_to_wrap"
    given = fsdp_setting(config, key, None) if config.training.get("fsdp") else None
    for name in [given] if isinstance(given, str) else given or ():
        if any(type(part).__name__ == name for part in model.modules()):
            continue
        lists = (part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
        layers = sorted({type(layer).__name__ for part in lists for layer in part})
        use = f", or use {in_series(layers)}" if layers else ""
        raise ConfigError(
            f"{config.at('training.fsdp_config')}training.fsdp_config.{key} = {shown(name)}: the model has "
            f"no such modules; leave it out{use}."
        )


def training_arguments(config: RunConfig, output_dir: Path) -> Any:
    """TRL's arguments for this run. Raises `ConfigError` for what TRL refuses."""
    # A copy: transformers adds its defaults to tables in it, which would be recorded as the run's settings.
    settings = copy.deepcopy(dict(config.training)) | {"output_dir": str(output_dir), "report_to": "none"}
    if given := settings.get("deepspeed"):
        settings["deepspeed"] = deepspeed_table(given, config.base_dir)
        use_build_lock()
    if isinstance(file := settings.get("fsdp_config"), str):
        settings["fsdp_config"] = str(config.base_dir / file)
    if best := settings.get("metric_for_best_model"):
        settings["metric_for_best_model"] = best.removeprefix("eval/")  # as in lists of a run's metrics
    chosen = precision(settings)
    settings |= {"bf16": chosen.bf16, "fp16": chosen.fp16}
    if not (chosen.bf16 or chosen.fp16):
        os.environ[MIXED_PRECISION] = "no"  # transformers would take it from there
    os.environ.pop(DYNAMIC, None)  # "no", accelerate's default, would compile the model for each length
    if not torch.accelerator.is_available():
        settings.setdefault("dataloader_pin_memory", False)  # no device to pin it for
        # By default, accelerate treats each torchrun process as a separate run if there is no GPU, and
        # transformers refuses bf16.
        settings["use_cpu"] = True
    if METHODS[config.run.method].compares:
        pass  # TRL truncates prompts with their answers itself
    elif not config.packing:
        # The rows are tokenised, labelled and truncated; TRL's own preparation would map over them again.
        settings |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        settings["padding_free"] = False  # decided once the model is on its device
    elif config.max_length is not None:
        settings["max_length"] = config.max_length
    try:
        args = trained_by(config.run.method).arguments(**settings)
    except (ValueError, TypeError, ImportError, AttributeError, OSError) as error:
        raise ConfigError(f"[training] is refused by TRL: {first_line(error)}") from error
    if args.lr_scheduler_type in FOLLOWING_A_METRIC and args.greater_is_better:
        # By default they take a metric that rises for one that gets worse.
        args.lr_scheduler_kwargs = {"mode": "max", **(args.lr_scheduler_kwargs or {})}
    return args


def remove_integrations(args: Any, config: RunConfig) -> Iterator[str]:
    """Remove the integrations that transformers adds to its `report_to`, against "none": they would report
    from the training process, which waits for them. Yields a note about those that no tracker replaces."""
    missed = [name for name in args.report_to if f"hf:{name}" not in config.tracking.trackers]
    args.report_to = []
    if missed:
        yield (
            f"the environment asks transformers to report to {', '.join(missed)}, but this run does not: add "
            f"{' '.join(f'--tracker hf:{name}' for name in missed)}"
        )
