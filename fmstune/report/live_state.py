"""The state of the live display of a run: from its growing journal, and from the run itself if it is in this
process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.reader import Event, JournalError, JournalReader, last_seq
from fmstune.delivery.ledger import load_ledgers
from fmstune.report.replay import SETTINGS, step_of
from fmstune.report.summary import journal_of

_MOST_POINTS = 4_096
_SHOWN = {
    "learning_rate": "lr",
    "grad_norm": "grad norm",
    "tokens_per_second": "tokens/s",
    "mean_token_accuracy": "accuracy",
}


@dataclass(frozen=True, slots=True)
class Delivered:
    """The progress of delivery to one tracker, and its error."""

    tracker: str
    delivered: int
    total: int
    problem: str = ""


@dataclass(slots=True)
class LiveState:
    """A running run. `phase` is its current phase, of which `done` of `total` parts (`None` if unknown) are
    complete; `steps` is the total number of steps. `losses` are pairs of step and loss, at most some
    thousands."""

    title: str = ""
    phase: str = "starting"
    phase_began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int | None = None
    step: int = 0
    steps: int | None = None
    epoch: float | None = None
    first: tuple[float, int] | None = None
    """When the training started, and at which step, to estimate the remaining time."""
    now: float | None = None
    losses: list[tuple[float, float]] = field(default_factory=list)
    eval_loss: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    memory_mb: float | None = None
    deliveries: list[Delivered] = field(default_factory=list)
    status: str | None = None

    def begin(self, phase: str, total: int | None = None) -> None:
        """Start another phase."""
        if phase != self.phase:
            self.phase, self.phase_began = phase, time.monotonic()
        self.done, self.total = 0, total

    def at_step(self, step: int, steps: int | None, now: float) -> None:
        """Report that the training has completed `step` steps at time `now`, in seconds."""
        if self.first is None or step < self.first[1]:
            self.first = now, step
        self.step, self.now = step, now
        self.steps = steps or self.steps

    @property
    def left(self) -> float | None:
        """The estimated seconds for the remaining steps, at the speed so far."""
        if self.first is None or self.now is None or not self.steps or self.step <= self.first[1]:
            return None
        return (self.now - self.first[0]) / (self.step - self.first[1]) * max(0, self.steps - self.step)

    def add(self, event: Event) -> None:
        """Add the next event of the journal."""
        if event.kind == "metrics":
            self._add_metrics(event)
        elif event.kind == "params" and event.name == SETTINGS:
            self._add_settings(event.values)
        elif event.kind == "params" and event.name == "decided":
            self._take_steps(event.values.get("max_steps"))
        elif event.kind == "resume":
            self.status, self.first = None, None
            if (step := step_of(event)) is not None:  # later steps will be logged again
                self.losses = [point for point in self.losses if point[0] <= step]
        elif event.kind == "status":
            self.status = event.status

    def _add_metrics(self, event: Event) -> None:
        step, values = step_of(event), event.values
        numbers = {name: each for name, each in values.items() if isinstance(each, (int, float))}
        if event.stage == "train":
            self.epoch = self.epoch if event.epoch is None else event.epoch
            if "loss" in numbers and step is not None:
                self.losses.append((float(step), float(numbers["loss"])))
                if len(self.losses) > _MOST_POINTS:
                    self.losses = self.losses[::2]
            self.figures |= {short: numbers[name] for name, short in _SHOWN.items() if name in numbers}
        elif event.stage == "eval" and "loss" in numbers:
            self.eval_loss = float(numbers["loss"])
        elif event.stage == "system" and "process_memory_mb" in numbers:
            self.memory_mb = float(numbers["process_memory_mb"])

    def _add_settings(self, settings: Mapping[str, Any]) -> None:
        def of(table: str, name: str) -> Any:
            found = settings.get(table)
            return found.get(name) if isinstance(found, Mapping) else None

        data = of("data", "train")
        self.title = " · ".join(
            str(each) for each in (of("model", "path"), of("run", "method"), data) if isinstance(each, str)
        )
        self._take_steps(of("training", "max_steps"))

    def _take_steps(self, steps: Any) -> None:
        if isinstance(steps, int) and steps > 0:
            self.steps = steps


class Follower:
    """Reads the additions to a run's journal and ledgers since the last call."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reader: JournalReader | None = None
        self._read: tuple[str, int] = ("", 0)
        """The run's id, and the highest number of its events so far."""

    def update(self, state: LiveState, *, most: int = 20_000) -> list[Event]:
        """Add new events, at most `most`, to the state, and return them."""
        found: list[Event] = []
        try:
            self._reader = self._reader or JournalReader(journal_of(self._directory))
            while len(found) < most and (events := self._reader.read(1024, patient=True)):
                found += self._new(self._reader.header.id, [event for event, _ in events])
            for event in found:
                state.add(event)
            total = last_seq(journal_of(self._directory)) - self._reader.header.after
            after = self._reader.header.after
            state.deliveries = [
                Delivered(
                    each.tracker,
                    max(0, min(each.delivered, total + after) - after),
                    max(total, 0),
                    each.error or "",
                )
                for each in load_ledgers(self._directory)
            ]
        except (OSError, JournalError):  # missing, or being repaired: try again next time
            pass
        return found

    def _new(self, run: str, events: Sequence[Event]) -> list[Event]:
        """The events that were not read before: a journal that its writer repairs is read from its start."""
        last = self._read[1] if self._read[0] == run else 0
        new = [event for event in events if event.seq > last]
        self._read = run, max((event.seq for event in new), default=last)
        return new
