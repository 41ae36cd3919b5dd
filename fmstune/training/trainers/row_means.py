"""Metrics of preferences as means over what they describe: rows, answers or tokens.

TRL logs the mean of batch means, in which a row of a small last batch counts more than others, so that a
reward accuracy changes with the batch size. A batch of kto with a single good answer would count as much for
the reward of good answers as one with eight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fmstune.training.trainers.row_batches import row_count
from fmstune.training.trl_compat.figures import Figures

_COUNTED_BY = {
    "entropy": "tokens",
    "mean_token_accuracy": "chosen tokens",
    "nll_loss": "chosen tokens",
    "logits/chosen": "chosen tokens",
    "logits/rejected": "rejected tokens",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "logps/chosen": "chosen",
    "logps/rejected": "rejected",
}
"""What TRL's mean of a batch is over, if not over its rows."""
_EXTREMES = {"min_reward": min, "max_reward": max}
_PREFIX = "eval_"
"""Of the names in TRL's experimental trainers."""
_NAMES = ("rows", "chosen", "rejected", "tokens", "chosen tokens", "rejected tokens")


def counts(batch: Mapping[str, Any], mask: str) -> torch.Tensor:
    """The numbers of a batch in the order of `_NAMES`; those of tokens by its `mask`, if it has one."""
    rows, labels, ids = row_count(batch), batch.get("label"), batch["input_ids"]
    if labels is None:  # all chosen answers, then all rejected
        good = torch.arange(len(ids), device=ids.device) < rows
    else:
        good = torch.as_tensor(labels, dtype=torch.bool, device=ids.device)
    tokens = batch[mask][:, 1:].sum(-1) if mask in batch else torch.zeros_like(ids[:, 0])
    found = [good.sum(), (~good).sum(), tokens.sum(), tokens[good].sum(), tokens[~good].sum()]
    return torch.stack([torch.full_like(found[0], rows), *found])


@dataclass
class RowMeans:
    """The metrics of the batches seen so far, each with its weight."""

    _seen: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, figures: Figures, known: Mapping[str, int], numbers: torch.Tensor) -> None:
        """Add the metrics of a batch: those in `figures` that were not there when `known` counted them.
        `numbers` are the `counts` of all processes."""
        weights = dict(zip(_NAMES, numbers.tolist(), strict=True))
        for name, values in figures.items():
            if len(values) > known.get(name, 0):
                weight = weights[_COUNTED_BY.get(name.removeprefix(_PREFIX), "rows")]
                self._seen[name].append((float(values[-1]), weight))

    def added(self, other: RowMeans) -> RowMeans:
        """The metrics of the batches of both."""
        both = RowMeans()
        for name in dict.fromkeys([*self._seen, *other._seen]):
            both._seen[name] = [*self._seen.get(name, ()), *other._seen.get(name, ())]
        return both

    def replace(self, figures: Figures) -> None:
        """Put the mean over all batches in place of their metrics, of which TRL would log the mean."""
        for name, seen in self._seen.items():
            if name == "num_tokens" or name not in figures:
                continue
            if name in _EXTREMES:
                figures[name] = [_EXTREMES[name](value for value, _ in seen)]
            elif total := sum(weight for _, weight in seen):
                figures[name] = [sum(value * weight for value, weight in seen) / total]
        for prefix in ("", _PREFIX):
            margin, good, bad = (f"{prefix}rewards/{name}" for name in ("margins", "chosen", "rejected"))
            if {good, bad} <= figures.keys():  # a batch of kto may have answers of one kind only
                figures[margin] = [figures[good][0] - figures[bad][0]]
