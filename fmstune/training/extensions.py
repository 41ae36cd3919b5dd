"""Code of the user's own that takes part in the training: callbacks, and a function that computes metrics.

Unlike a tracker it is a part of the training: what it raises ends the run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import EvalPrediction, TrainerCallback
from transformers.trainer_utils import denumpify_detensorize

from fmstune.config.schema.data import eval_sets
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError, RunError
from fmstune.text import shown
from fmstune.training.callbacks.best_metric import require_metric
from fmstune.user_code import load_object

_OF_THE_RUN = frozenset((
    "loss", "loss_batch_mean", "runtime", "samples_per_second", "steps_per_second", "entropy",
    "mean_token_accuracy", "num_tokens", "aux_loss",
))  # fmt: skip
"""The metrics of each evaluation."""
ComputeMetrics = Callable[[EvalPrediction], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Extensions:
    """Callbacks, as instances or classes that take nothing, and the function that computes metrics of an
    evaluation from its logits and labels (as transformers' Trainer has it)."""

    callbacks: tuple[TrainerCallback | type[TrainerCallback], ...] = ()
    compute_metrics: ComputeMetrics | None = None

    @property
    def computed(self) -> Collection[str]:
        """The names of the metrics that the function has returned so far."""
        found: Collection[str] = getattr(self.compute_metrics, "computed_names", ())
        return found

    def with_instances(self) -> Extensions:
        """These, with an instance of each class. Raises `ConfigError` for anything but callbacks."""
        return Extensions(tuple(map(_made, self.callbacks)), self.compute_metrics)

    def with_configured(self, config: RunConfig) -> Extensions:
        """These, and those in `[run]`. Raises `ConfigError` for what cannot be found or used, and if no
        evaluation can have the metric that decides which is the best."""
        settings = config.run
        named = [load_object(where, "run.callbacks") for where in settings.callbacks]
        callbacks = tuple(_made(each) for each in (*self.callbacks, *named))
        compute = self.compute_metrics
        if compute is None and settings.compute_metrics is not None:
            compute = load_object(settings.compute_metrics, "run.compute_metrics")
        if compute is not None and not callable(compute):
            raise ConfigError(f"run.compute_metrics = {shown(settings.compute_metrics)} is not a function.")
        evaluates = config.training.get("eval_strategy", "no") != "no"
        if evaluates and not callbacks and compute is None and settings.method == "sft":
            require_metric(config, _of_the_run(config))
        return Extensions(callbacks, compute and _checked(compute, _of_the_run(config)))


def _of_the_run(config: RunConfig) -> Collection[str]:
    """The run's own metrics of an evaluation of sft, with those of its named sets."""
    sets = eval_sets(config.data.eval)
    return _OF_THE_RUN | {f"{name}_{metric}" for name in sets for metric in _OF_THE_RUN}


def _checked(compute: ComputeMetrics, own: Collection[str]) -> ComputeMetrics:
    """The function, with a check of its return value: the Trainer would fail on it later."""
    if hasattr(compute, "computed_names"):  # already wrapped
        return compute
    names: dict[str, None] = {}

    @functools.wraps(compute)  # the Trainer inspects its parameters
    def checked(*args: Any, **kwargs: Any) -> Mapping[str, float]:
        found = compute(*args, **kwargs)
        between = (
            kwargs.get("compute_result") is False
        )  # with batch_eval_metrics: a batch that is not the last one
        if not isinstance(found, Mapping) and not between:
            raise RunError(
                f"{_returned(compute)} {shown(found)}; it has to return a mapping of names to numbers."
            )
        found = (
            {name: _plain(value) for name, value in found.items()} if isinstance(found, Mapping) else found
        )
        for name, value in found.items() if isinstance(found, Mapping) else ():
            if not isinstance(name, str):
                raise RunError(f"{_returned(compute)} the name {shown(name)}; names are strings.")
            if name.removeprefix("eval_") in own:
                raise RunError(
                    f"{_returned(compute)} the metric {shown(name)}, which is one of the run's own and would "
                    "replace it, or be replaced; give it another name."
                )
            if not _is_json(value):
                raise RunError(
                    f"{_returned(compute)} the metric {shown(name)} of the type {type(value).__name__}, "
                    "which checkpoints cannot store; return numbers, and pass anything else to fmstune.track."
                )
            names.setdefault(name.removeprefix("eval_"))
        return found

    checked.computed_names = names  # type: ignore[attr-defined]
    return checked


def _plain(value: Any) -> Any:
    """A single value of NumPy or torch as Python's; anything else unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _is_json(value: Any) -> bool:
    """Whether the Trainer can write a value into the state of a checkpoint."""
    try:
        json.dumps(denumpify_detensorize(value))
    except (TypeError, ValueError):
        return False
    return True


def _returned(function: Any) -> str:
    """The beginning of a sentence about what a function returned."""
    return f"run.compute_metrics: {getattr(function, '__name__', type(function).__name__)} returned"


def _made(callback: Any) -> TrainerCallback:
    try:
        made = callback() if isinstance(callback, type) else callback
    except Exception as error:  # the user's constructor may raise anything
        raise ConfigError(
            f"the callback {callback.__name__} cannot be made: {type(error).__name__}: {error}; a class that "
            "is named in run.callbacks takes no arguments."
        ) from error
    if not isinstance(made, TrainerCallback):
        raise ConfigError(f"{shown(callback)} is no transformers.TrainerCallback, nor a class of them.")
    return made
