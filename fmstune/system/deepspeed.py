"""Let DeepSpeed check its own settings before a run has a directory, rather than at the first step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fmstune.config.check.suggest import closest
from fmstune.config.rules.deepspeed import KEY, quoted
from fmstune.config.rules.deepspeed_table import AUTO, BATCH, DeepSpeedTable, deepspeed_table, read_table
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError, combined
from fmstune.system.device import precision
from fmstune.text import first_line, listed

_PARTS = {
    "DeepSpeedZeroConfig": "zero_optimization.",
    "DeepSpeedBF16Config": "bf16.",
    "DeepSpeedFP16Config": "fp16.",
}
"""The place of the settings of DeepSpeed's classes; its errors only name the class."""


def check_deepspeed(config: RunConfig) -> None:
    """Raise `ConfigError` with what contradicts the precision of this device, and what DeepSpeed refuses."""
    given = config.training.get("deepspeed")
    if not given:
        return
    found = read_table(given, config.base_dir)
    problems = [
        *_precision(found, config),
        *_refused(found, deepspeed_table(given, config.base_dir)),
        *_optimizer(found),
    ]
    if problems:
        raise combined([f"{config.at(KEY)}{problem}" for problem in problems])


def _precision(found: DeepSpeedTable, config: RunConfig) -> Iterator[str]:
    chosen = precision(config.training)
    for half, wanted in (("bf16", chosen.bf16), ("fp16", chosen.fp16)):
        enabled = found.get(f"{half}.enabled")
        if isinstance(enabled, bool) and enabled is not wanted:
            yield (
                f"{quoted(found, f'{half}.enabled')} contradicts the precision of this run "
                f'({chosen.line()}): write "auto" there, or set training.{half} = {str(enabled).lower()}.'
            )


def _optimizer(found: DeepSpeedTable) -> Iterator[str]:
    kind = found.get("optimizer.type")
    if not isinstance(kind, str):
        return
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    theirs = {name for name, each in vars(torch.optim).items() if isinstance(each, type)} - {"Optimizer"}
    if kind.lower() not in DEEPSPEED_OPTIMIZERS and kind not in theirs:
        close = closest(kind, sorted(theirs | set(DEEPSPEED_OPTIMIZERS)), {})
        meant = f"Did you mean {close}?" if close else f"Available: {listed(DEEPSPEED_OPTIMIZERS)}."
        yield f"{quoted(found, 'optimizer.type')} is no optimizer of DeepSpeed or torch. {meant}"


def _refused(found: DeepSpeedTable, table: dict[str, Any]) -> Iterator[str]:
    try:
        from deepspeed.runtime.config import DeepSpeedConfig
    except Exception as error:  # such as a missing compiler: DeepSpeed raises its own kinds
        raise ConfigError(f"DeepSpeed cannot be imported: {first_line(error)}") from error
    # The Trainer fills these; whether they fit `[training]` is checked with the configuration.
    known = {key: value for key, value in table.items() if key not in BATCH and value != AUTO}
    try:
        DeepSpeedConfig({**known, BATCH[1]: 1, BATCH[2]: 1})
    except Exception as error:  # pydantic's, assertions, and DeepSpeed's own
        details = getattr(error, "errors", None)
        if not callable(details):
            yield f"{KEY}: DeepSpeed refuses the settings{found.place}: {first_line(error)}"
            return
        part = _PARTS.get(getattr(error, "title", ""), "")
        for each in details():
            yield _sentence(found, part + ".".join(map(str, each["loc"])), each)


def _sentence(found: DeepSpeedTable, key: str, detail: dict[str, Any]) -> str:
    """One of pydantic's errors, with its place and a remedy."""
    if detail["type"] == "extra_forbidden":
        name = key.rpartition(".")[2]
        close = closest(name, _names(), {})
        return f"{KEY}: DeepSpeed has no setting {key}{found.place and f', as{found.place}'}." + (
            f" Did you mean {close}?" if close else " Leave it out."
        )
    problem = str(detail["msg"]).rstrip(".")
    if found.get(key) is None:  # an error of several settings together
        return f"{KEY}: DeepSpeed refuses {key.rstrip('.') or 'it'}{found.place}: {problem}."
    return f"{quoted(found, key)} is refused by DeepSpeed: {problem[:1].lower()}{problem[1:]}."


def _names() -> list[str]:
    """The names of the settings in all tables that DeepSpeed checks with pydantic."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    fields = [kind.model_fields for kind in DeepSpeedConfigModel.__subclasses__()]
    return sorted({field.alias or name for each in fields for name, field in each.items()})
