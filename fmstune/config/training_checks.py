"""Values of `[training]` that transformers would refuse only when the model is loaded, or later still."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fmstune.config.data_files import exists
from fmstune.config.errors import shown
from fmstune.config.schedules import schedule_problems
from fmstune.config.schema import RunConfig


def training_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What is wrong, as (key, message)."""
    training = config.training
    yield from schedule_problems(training)
    file = training.get("accelerator_config")
    if isinstance(file, str) and not file.startswith("{") and not exists(config.base_dir / file):
        key = "training.accelerator_config"
        yield key, f"{key} = {shown(file)}: there is no such file."
    text = training.get("optim_args")
    if text and not all(re.fullmatch(r"\s*[^=\s]+\s*=[^=]+", part) for part in str(text).split(",")):
        key = "training.optim_args"
        yield key, f"{key} = {shown(text)} is not of the form NAME=VALUE,NAME=VALUE."
    told = training.get("metric_for_best_model") or training.get("load_best_model_at_end")
    if training.get("save_strategy") == "best" and not told:
        key = "training.save_strategy"
        yield key, f"{key} = 'best' needs to know by what: set training.metric_for_best_model = \"loss\"."
