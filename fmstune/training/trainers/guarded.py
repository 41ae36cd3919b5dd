"""Check a TRL Trainer for non-finite values, and restrict its metrics to the batches it learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.data.tokens.table import IGNORED
from fmstune.training.callbacks.unreached import require_reached
from fmstune.training.trainers.each_row_once import WEIGHT
from fmstune.training.trainers.engine_updates import is_applied, is_engine, searches_scale
from fmstune.training.trainers.nonfinite import COUNTER
from fmstune.training.trainers.saved_files import SavesNoSecrets
from fmstune.training.trl_compat.figures import collected_metrics
from fmstune.training.trl_compat.steps import scales_loss
from fmstune.training.tuned_trainer import OfRun, as_trainer


@dataclass(frozen=True, slots=True)
class Updates:
    """The number of updates in an interval, and how much of them was learnt: the sum of each update's share
    of batches that were not skipped."""

    count: int = 0
    learnt: float = 0.0

    def and_one(self, share: float) -> Updates:
        """Add one update."""
        return Updates(self.count + 1, self.learnt + share)

    @property
    def nothing_learnt(self) -> bool:
        """Whether there were updates, but all their batches were skipped."""
        return self.count > 0 == self.learnt

    def mean(self, logged: float) -> float:
        """The mean over the learnt batches, given one that counts skipped batches as zeros."""
        return logged if self.learnt == self.count else logged * self.count / self.learnt


class GuardedTraining(OfRun, SavesNoSecrets):
    """A mixin for a TRL Trainer, before it, that calls the guard at each batch, update and save.

    Logged metrics exclude skipped batches; if all were skipped, no loss is logged. A no-op without a `guard`.
    """

    _of_log = _of_run = Updates()
    _of_update: tuple[tuple[Any, bool], ...] = ()
    """For each batch of the current update, its weight in the loss, and whether it was skipped."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss, checked."""
        trainer = as_trainer(super())
        figures = collected_metrics(self, "train")
        before = {name: len(values) for name, values in figures.items()}
        weight = inputs.get(WEIGHT, 1)
        answer = trainer.compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if return_outputs or not model.training:
            return answer
        require_reached(answer, model)
        if self.guard is None:
            return answer
        counted = self.guard.skipped
        loss = self.guard.loss(answer, inputs, model, as_trainer(self).state.global_step + 1)
        skipped = self.guard.skipped > counted
        tokens = num_items_in_batch is not None and "labels" in inputs
        counts = (inputs["labels"] != IGNORED).sum() if tokens else weight
        self._of_update = (*self._of_update, (counts, skipped))
        if skipped:
            _forget(figures, before)
        return loss

    def forget_batches(self) -> None:
        """Reset the counts, after trial batches."""
        self._of_log = self._of_run = Updates()
        self._of_update = ()

    def gradient_norm(self, model: Any, grad_norm: Any) -> Any:
        """The Trainer's, checked before the weights are updated."""
        norm, this = super().gradient_norm(model, grad_norm), as_trainer(self)
        if self.guard is None:
            return norm
        share, any_skipped = _learnt(self._of_update), any(skipped for _, skipped in self._of_update)
        nothing_learnt, self._of_update = share == 0, ()
        self._of_log, self._of_run = self._of_log.and_one(share), self._of_run.and_one(share)
        if is_engine(model):
            return None if nothing_learnt else self._norm_of_engine(model, norm, any_skipped)
        # In fp16, infinite gradients serve to find the loss scale; such updates are skipped anyway.
        if scales_loss(this) and not nothing_learnt:
            return norm
        if nothing_learnt or not self.guard.gradient(norm, this.state.global_step + 1):
            # Not zeros: an optimizer would still apply its momentum and weight decay.
            model.zero_grad(set_to_none=True)
            return None  # not logged
        return norm

    def _norm_of_engine(self, engine: Any, norm: Any, any_skipped: bool) -> Any:
        """The norm to log, after an update of DeepSpeed's engine, or one that it has dropped."""
        if norm is None or self.guard is None:
            return None
        applied, step = is_applied(engine), as_trainer(self).state.global_step + 1
        if not applied and any_skipped:
            return None  # as a batch of it was to be skipped, which has been reported
        if not applied and searches_scale(engine):
            return norm
        return norm if self.guard.gradient(norm, step, applied=applied) else None

    def store_model(self, output_dir: str | None, *, at_end: bool) -> None:
        """The Trainer's, unless the weights are broken."""
        this = as_trainer(self)
        if self.guard is not None and not self.checks_copies:
            self.guard.weights(this.model, this.state.global_step)
        super().store_model(output_dir, at_end=at_end)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's, with means over the learnt batches, and the number of skipped batches so far, if
        any."""
        for name, batches in (("loss", self._of_log), ("train_loss", self._of_run)):
            if name in logs and batches.nothing_learnt:
                del logs[name]
            elif name in logs:
                logs[name] = batches.mean(logs[name])
        if "learning_rate" in logs:  # a training log, even one without a loss
            # After an evaluation, TRL would take it for a log of that, and leave out the training's metrics.
            if not (model := as_trainer(self).model).training:
                model.train()
            self._of_log = Updates()
            if self.guard is not None and self.guard.skipped:
                logs[COUNTER] = self.guard.skipped
        super().log(logs, start_time)


def _learnt(batches: Sequence[tuple[Any, bool]]) -> float:
    """The share of an update that was learnt. Counts on a device are read only if some, but not all, batches
    were skipped."""
    if not any(skipped for _, skipped in batches):
        return 1.0
    if all(skipped for _, skipped in batches):
        return 0.0
    return float(sum(counts for counts, skipped in batches if not skipped)) / float(
        sum(counts for counts, _ in batches)
    )


def _forget(figures: dict[str, list[Any]], before: dict[str, int]) -> None:
    """Remove a skipped batch's values from the means that TRL is about to log."""
    for name in list(figures):
        if name != "num_tokens":  # not a mean, but a token count
            del figures[name][before.get(name, 0) :]
        if not figures[name]:
            del figures[name]  # TRL divides by its length
