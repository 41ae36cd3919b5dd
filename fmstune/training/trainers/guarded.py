"""Check a TRL Trainer's numbers, and restrict its metrics to the batches it learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.data.tokens.table import IGNORED
from fmstune.training.trainers.nonfinite import COUNTER
from fmstune.training.trainers.saved_files import SavesNoSecrets
from fmstune.training.trl_compat.figures import noted_figures
from fmstune.training.trl_compat.steps import scales_loss
from fmstune.training.tuned_trainer import OfRun, as_trainer


@dataclass(frozen=True, slots=True)
class Updates:
    """The updates since some moment, and how much of them was learnt: of each the share of its batches, which
    is 1 where none was skipped."""

    count: int = 0
    learnt: float = 0.0

    def and_one(self, share: float) -> Updates:
        """These and one more."""
        return Updates(self.count + 1, self.learnt + share)

    @property
    def nothing_learnt(self) -> bool:
        """Whether there were updates, and all of their batches were skipped."""
        return self.count > 0 == self.learnt

    def mean(self, logged: float) -> float:
        """The mean of the batches that were learnt from, of one in which the skipped ones are zeros."""
        return logged if self.learnt == self.count else logged * self.count / self.learnt


class GuardedTraining(OfRun, SavesNoSecrets):
    """A mixin for a TRL Trainer, before it: the guard at each batch, update and save.

    A skipped batch has no part in what is logged: where all were skipped there is no loss to log. Without a
    `guard` it changes nothing.
    """

    _of_log = _of_run = Updates()
    _of_update: tuple[tuple[Any, bool], ...] = ()
    """Of each batch of the update at hand what it counts in the loss, and whether it was skipped."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss, checked."""
        trainer = as_trainer(super())
        figures = noted_figures(self, "train")
        before = {name: len(values) for name, values in figures.items()}
        answer = trainer.compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if self.guard is None or return_outputs or not model.training:
            return answer
        counted = self.guard.skipped
        loss = self.guard.loss(answer, inputs, model, as_trainer(self).state.global_step + 1)
        skipped = self.guard.skipped > counted
        tokens = num_items_in_batch is not None and "labels" in inputs
        counts = (inputs["labels"] != IGNORED).sum() if tokens else 1
        self._of_update = (*self._of_update, (counts, skipped))
        if skipped:
            _forget(figures, before)
        return loss

    def forget_batches(self) -> None:
        """Restart counting, after batches that were only tried."""
        self._of_log = self._of_run = Updates()
        self._of_update = ()

    def gradient_norm(self, model: Any, grad_norm: Any) -> Any:
        """The Trainer's, checked before the weights are updated."""
        norm, this = super().gradient_norm(model, grad_norm), as_trainer(self)
        if self.guard is None:
            return norm
        share = _learnt(self._of_update)
        nothing_learnt, self._of_update = share == 0, ()
        self._of_log, self._of_run = self._of_log.and_one(share), self._of_run.and_one(share)
        # In fp16 infinite gradients are how the loss's scale is found; such updates are left out anyway.
        if scales_loss(this) and not nothing_learnt:
            return norm
        if nothing_learnt or not self.guard.gradient(norm, this.state.global_step + 1):
            # Not zeros: an optimizer would still apply its momentum and weight decay.
            model.zero_grad(set_to_none=True)
            return None  # not logged
        return norm

    def report_loaded(self, load_result: Any) -> None:
        """The Trainer's, without the weights that are another name of loaded ones, such as a tied `lm_head`:
        a checkpoint holds them once, and at each resume they looked like damage."""
        state = as_trainer(self).model.state_dict()
        missing = set(load_result.missing_keys)
        loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
        tied = {name for name in missing & state.keys() if state[name].data_ptr() in loaded}
        super().report_loaded(
            type(load_result)(
                [name for name in load_result.missing_keys if name not in tied], load_result.unexpected_keys
            )
        )

    def store_model(self, output_dir: str | None, *, at_end: bool) -> None:
        """The Trainer's, unless the weights are broken."""
        this = as_trainer(self)
        if self.guard is not None:
            self.guard.weights(this.model, this.state.global_step)
        super().store_model(output_dir, at_end=at_end)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's, with the means of what was learnt, and the number of batches skipped so far, once
        there are any."""
        for name, batches in (("loss", self._of_log), ("train_loss", self._of_run)):
            if name in logs and batches.nothing_learnt:
                del logs[name]
            elif name in logs:
                logs[name] = batches.mean(logs[name])
        if "learning_rate" in logs:  # of a log of the training, also one without a loss
            self._of_log = Updates()
            if self.guard is not None and self.guard.skipped:
                logs[COUNTER] = self.guard.skipped
        super().log(logs, start_time)


def _learnt(batches: Sequence[tuple[Any, bool]]) -> float:
    """The share of an update that was learnt. What was counted on a device is read where a batch was skipped
    alone."""
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
        if name != "num_tokens":  # not a mean, but the number of tokens read
            del figures[name][before.get(name, 0) :]
        if not figures[name]:
            del figures[name]  # TRL divides by their number
