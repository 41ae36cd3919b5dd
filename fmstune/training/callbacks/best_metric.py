"""The metric that decides which evaluation is the best: it has to be one of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.config.check.suggest import hint
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.text import listed

_PREFIXES = ("eval_", "eval/")
"""Before the name of a metric in transformers, and in a run."""
_NOT_QUALITY = ("runtime", "samples_per_second", "steps_per_second", "num_tokens", "epoch")


class BestMetric(TrainerCallback):
    """End the run with a clear message where the Trainer would raise a `KeyError`. Add it after callbacks
    that may add metrics."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        require_metric(self._config, {plain(name) for name in metrics or {}})


def plain(name: str) -> str:
    """The name of an evaluation's metric, without transformers' prefix or that of a run's list."""
    return next((name.removeprefix(each) for each in _PREFIXES if name.startswith(each)), name)


def require_metric(config: RunConfig, known: Collection[str]) -> None:
    """Raise `ConfigError` if `training.metric_for_best_model` is set, and not one of the `known` ones of an
    evaluation."""
    key = "training.metric_for_best_model"
    name = config.training.get("metric_for_best_model")
    if name is None or plain(name) in known:
        return
    found = sorted(set(known) - set(_NOT_QUALITY))
    raise ConfigError(
        f"{config.at(key)}{key} = {name!r} is not a metric of the evaluations; they have {listed(found)}."
        f"{hint(plain(name), found) or ' Compute it with run.compute_metrics, or choose one of these.'}"
    )
