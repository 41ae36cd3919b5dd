"""Evaluate on all rows, even if training drops an incomplete last batch."""

from __future__ import annotations

from typing import Any


class EvaluatesAllRows:
    """A mixin for a TRL Trainer, before it."""

    args: Any

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The Trainer's, without `dataloader_drop_last`. The Trainer applies it here as well: metrics would
        depend on the batch size, and a small set would not be evaluated at all."""
        trainer: Any = super()
        given, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return trainer.get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = given
