"""`Method`: all that the rest of fmstune has to know of a method of training, but for torch's part of it.

That part is the file of the same name in `fmstune/training/methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["tokens", "pair", "judged pair", "labelled"]
"""What the trainer of a method takes of a row: `tokens`, a sequence with labels; `pair`, a prompt with a
better and a worse answer; `judged pair`, the same as two whole conversations; `labelled`, a prompt with one
answer that is good or bad. `fmstune.data.tokens` encodes them, and `fmstune.training.memory` has placeholder
rows of each for streams."""

Problem = tuple[str, str]
"""A key of the configuration, and what is wrong with it."""
Rules = Callable[[Mapping[str, Any]], Iterator[Problem]]
"""From `[training]` to what of it does not fit."""


def _nothing(training: Mapping[str, Any]) -> Iterator[Problem]:
    yield from ()


@dataclass(frozen=True)
class Method:
    """A value of `run.method`."""

    name: str
    learns: str
    """From what, for helps: `examples`, `preferences`."""
    form: Form
    config: tuple[str, str, str]
    """The class of `[training]`, which is read as source: package, file, name."""
    lora_learning_rate: float
    """Of an adapter, which starts from zero and takes ten times the rate of full weights (TRL's advice)."""
    demo_learning_rate: float | None = None
    """For the demo's model, where it is not that of sft: a model which is compared with its own beginning
    runs away from it at that rate."""
    reference: bool = False
    """Whether the model is compared with what it was at the beginning."""
    scores: bool = False
    """Whether the model gives texts a number instead of writing them."""
    in_order: bool = False
    """Whether its trainer takes the rows in their order, so that they are shuffled in advance."""
    smooths_by: str = ""
    """What to use instead of `training.label_smoothing_factor`, which is sft's."""
    shown: tuple[tuple[str, str], ...] = ()
    """Figures in the lines of the progress, each with its short name."""
    results: tuple[str, ...] = ()
    """Figures in the model card."""
    problems: Rules = _nothing
    """What of `[training]` TRL refuses, late, or uses wrongly."""
    unused: Rules = _nothing
    """Fields of `[training]` (without the table's name) that do nothing, each with the reason."""
    experimental: bool = False
    """Whether TRL may change or remove its trainer in any release."""

    @property
    def compares(self) -> bool:
        """Whether it learns from better and worse answers."""
        return self.form != "tokens"

    @property
    def needs(self) -> str:
        """What its rows have, for messages."""
        return NEEDS[self.form]

    @property
    def title(self) -> str:
        """Its name, marked where it is experimental."""
        return f"{self.name} (experimental)" if self.experimental else self.name


_PAIRS = "learns from pairs of answers: rows have `chosen` and `rejected`, and mostly a `prompt`"
NEEDS: Mapping[Form, str] = {
    "tokens": "learns from examples: rows have messages, or a prompt and a completion, or a text",
    "pair": _PAIRS,
    "judged pair": _PAIRS,
    "labelled": "learns from good and bad answers: rows have `prompt`, `completion` and `label` (true or "
    "false), or `chosen` and `rejected`",
}
"""What rows of each form have, for messages."""

REWARDS = (("rewards/accuracies", "reward accuracy"), ("rewards/margins", "margin"))
"""Whether it is the better answer that is preferred, which says more than how well it is predicted."""
REWARDS_RESULTS = ("eval/rewards/accuracies", "eval/rewards/margins")
