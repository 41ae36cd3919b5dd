"""`Method`: the description of a training method for the rest of fmstune, except for the part that needs
torch.

That part is the file of the same name in `fmstune/training/methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["tokens", "pair", "judged pair", "labelled"]
"""The form of row that a method's trainer takes: `tokens`, a sequence with labels; `pair`, a prompt with a
better and a worse answer; `judged pair`, the same as two whole conversations; `labelled`, a prompt with one
answer that is good or bad. `fmstune.data.tokens` encodes them, and `fmstune.training.memory` has placeholder
rows of each form for streams."""

Problem = tuple[str, str]
"""A key of the configuration, and what is wrong with it."""
Rules = Callable[[Mapping[str, Any]], Iterator[Problem]]
"""Yields the problems in `[training]`."""


def _nothing(training: Mapping[str, Any]) -> Iterator[Problem]:
    yield from ()


@dataclass(frozen=True)
class Method:
    """A value of `run.method`."""

    name: str
    learns: str
    """The kind of data, for help texts: `examples`, `preferences`."""
    form: Form
    config: tuple[str, str, str]
    """The class that defines `[training]`, read from source: package, file, name."""
    lora_learning_rate: float
    """The default for an adapter, which starts from zero and needs ten times the rate of full weights (TRL's
    advice)."""
    demo_learning_rate: float | None = None
    """The default for the demo model, if sft's does not work: a model that is compared with its initial state
    diverges from it at that rate."""
    reference: bool = False
    """Whether the model is compared with its initial state."""
    trains: str = "the responses"
    """The parts of a row that are learnt, for messages."""
    besides: str = ""
    """What it learns besides the text that is shown as trained."""
    scores: bool = False
    """Whether the model scores text instead of generating it."""
    in_order: bool = False
    """Whether its trainer takes the rows in order, so that they are shuffled in advance, unless
    `training.train_sampling_strategy` is set."""
    smooths_by: str = ""
    """The replacement for `training.label_smoothing_factor`, which is sft's."""
    shown: tuple[tuple[str, str], ...] = ()
    """The metrics in progress lines, each with its short name."""
    results: tuple[str, ...] = ()
    """The metrics in the model card."""
    problems: Rules = _nothing
    """Settings in `[training]` that TRL rejects late, or uses wrongly."""
    unused: Rules = _nothing
    """Fields of `[training]` (without the table's name) that have no effect, each with the reason."""
    experimental: bool = False
    """Whether TRL may change or remove its trainer in any release."""

    @property
    def compares(self) -> bool:
        """Whether it learns from better and worse answers."""
        return self.form != "tokens"

    @property
    def needs(self) -> str:
        """The columns of its rows, for messages."""
        return NEEDS[self.form]

    @property
    def title(self) -> str:
        """Its name, marked if it is experimental."""
        return f"{self.name} (experimental)" if self.experimental else self.name


_PAIRS = "learns from pairs of answers: rows have `chosen` and `rejected`, and usually a `prompt`"
NEEDS: Mapping[Form, str] = {
    "tokens": "learns from examples: rows have messages, or a prompt and a completion, or a text",
    "pair": _PAIRS,
    "judged pair": _PAIRS,
    "labelled": "learns from good and bad answers: rows have `prompt`, `completion` and `label` (true or "
    "false), or `chosen` and `rejected`",
}
"""The columns of rows of each form, for messages."""

REWARDS = (("rewards/accuracies", "reward accuracy"), ("rewards/margins", "margin"))
"""How often, and by how much, the better answer is preferred: more telling than how well it is predicted."""
REWARDS_RESULTS = ("eval/rewards/accuracies", "eval/rewards/margins")
