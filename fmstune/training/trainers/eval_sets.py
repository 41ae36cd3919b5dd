"""Evaluation on several named sets: the metrics of each, and those of all rows.

With a dict of data sets the Trainer evaluates each on its own, with a log and a call of the callbacks for
each: nothing would be the loss of the evaluation, which decides the best weights, and a patience would count
each set. TRL logs its metrics of all sets under one name. Here an evaluation has one log with all of it: the
metrics of a set follow its name, as in transformers (`eval_math_loss`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import datasets
import numpy as np
from transformers import EvalPrediction

from fmstune.data.tokens.table import IGNORED
from fmstune.training.trl_compat.figures import Figures, collected_metrics
from fmstune.training.tuned_trainer import as_trainer

_TIME = "model_preparation_time"
"""A metric of transformers that all sets have in common."""


class Measured(Protocol):
    """What an evaluation has measured in rows or tokens, for means over those of several sets."""

    batch_mean: float
    """The Trainer's own loss, in place of which it writes one."""

    def added(self, other: Any) -> Any:
        """Both together."""

    def write(self, metrics: dict[str, float], figures: Figures, prefix: str) -> None:
        """Put the means in place of the Trainer's `metrics` and TRL's `figures`."""


class EvaluatesSets:
    """A mixin for a TRL Trainer, before those that measure its evaluations."""

    eval_sets: Mapping[str, int]
    measured: Measured | None = None
    """What the last loop has measured; `None` if the Trainer's metrics hold."""
    compute_metrics: Any
    eval_dataset: Any

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's, over each set."""
        this, trainer = as_trainer(self), as_trainer(super())
        if not self.eval_sets:
            return trainer.evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        together, recorded = _Together(metric_key_prefix), _Recorded(self.compute_metrics)
        rows, self.eval_dataset = self.eval_dataset, dict(sets_of(self.eval_dataset, self.eval_sets))
        if self.compute_metrics is not None:
            self.compute_metrics = recorded
        try:
            for name in self.eval_sets:
                # By its name, as the Trainer keeps the loaders of persistent workers by names.
                output = trainer.evaluation_loop(
                    this.get_eval_dataloader(name),
                    description,
                    prediction_loss_only,
                    ignore_keys,
                    f"{metric_key_prefix}_{name}",
                )
                together.add(name, output, collected_metrics(self, "eval"), self.measured)
        finally:
            self.eval_dataset, self.compute_metrics = rows, recorded.compute
        metrics = together.metrics(collected_metrics(self, "eval")) | recorded.of_all(metric_key_prefix)
        return output._replace(
            predictions=None, label_ids=None, metrics=metrics, num_samples=sum(together.rows)
        )


def sets_of(rows: Any, counts: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    """Each set of the rows, which has so many of them."""
    begin = 0
    for name, count in counts.items():
        yield name, rows.select(range(begin, begin + count))
        begin += count


def join_sets(trainer: Any, sets: Mapping[str, Any]) -> None:
    """Give the trainer the rows of its sets one after the other, as it has them otherwise."""
    trainer.eval_sets = {name: len(rows) for name, rows in sets.items()}
    trainer.eval_dataset = datasets.concatenate_datasets(list(sets.values()))


@dataclass
class _Together:
    """The evaluations of the sets so far."""

    prefix: str
    rows: list[int] = field(default_factory=list)
    _found: dict[str, float] = field(default_factory=dict)
    _losses: list[float] = field(default_factory=list)
    _figures: Figures = field(default_factory=dict)
    _measured: Measured | None = None

    def add(self, name: str, output: Any, figures: Figures, measured: Measured | None) -> None:
        """Add the evaluation of a set, with TRL's `figures`, which become metrics of the set."""
        own = f"{self.prefix}_{name}_"
        self.rows.append(output.num_samples)
        loss = output.metrics.get(f"{own}loss", 0.0)
        self._losses.append(loss if measured is None else measured.batch_mean)
        for metric, value in output.metrics.items():
            self._found[f"{self.prefix}_{_TIME}" if metric == own + _TIME else metric] = value
        for figure, values in figures.items():
            short = figure.removeprefix("eval_")  # TRL's experimental trainers have it
            if values and short != "num_tokens":  # of the training
                self._found[own + short] = sum(values) / len(values)
            self._figures.setdefault(figure, []).extend(values)
        figures.clear()
        if measured is not None:
            self._measured = measured if self._measured is None else self._measured.added(measured)

    def metrics(self, figures: Figures) -> dict[str, float]:
        """The metrics of the sets, and of all rows; TRL's of these are put into `figures`, which it logs."""
        rows = zip(self._losses, self.rows, strict=True)
        metrics = {f"{self.prefix}_loss": sum(loss * count for loss, count in rows) / sum(self.rows)}
        figures.update(self._figures)
        if self._measured is not None:
            self._measured.write(metrics, figures, self.prefix)
        return metrics | self._found


@dataclass
class _Recorded:
    """The user's function that computes metrics, with what it was given."""

    compute: Any
    given: list[EvalPrediction] = field(default_factory=list)

    def __call__(self, prediction: EvalPrediction) -> Any:
        """The function's metrics of a set."""
        self.given.append(prediction)
        return self.compute(prediction)

    def of_all(self, prefix: str) -> dict[str, float]:
        """Its metrics of all sets together."""
        if not self.given:
            return {}
        names = ("predictions", "label_ids", "inputs", "losses")
        parts = {name: _joined([getattr(each, name) for each in self.given]) for name in names}
        found = self.compute(EvalPrediction(**parts))
        before = f"{prefix}_"
        return {before + name.removeprefix(before): _number(value) for name, value in found.items()}


def _number(value: Any) -> Any:
    """A number of Python's, for one of numpy or torch."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _joined(parts: Sequence[Any]) -> Any:
    """Arrays of rows, or tuples and mappings of them, one after the other, padded as the Trainer pads them;
    with `training.eval_do_concat_batches = false` they are lists of those of batches."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, list):
        return [each for part in parts for each in part]
    if isinstance(first, tuple):
        return tuple(map(_joined, zip(*parts, strict=True)))
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    size = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    whole = np.full((sum(map(len, parts)), *size), IGNORED, dtype=first.dtype)
    begin = 0
    for part in parts:
        whole[(slice(begin, begin + len(part)), *map(slice, part.shape[1:]))] = part
        begin += len(part)
    return whole
