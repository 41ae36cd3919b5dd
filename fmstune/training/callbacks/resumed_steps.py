"""Make a resumed run log, evaluate and save at its current intervals.

The Trainer computes these when it starts, and then replaces them by the state of the checkpoint, with the
intervals of the original run (transformers 5.23).
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ResumedSteps(TrainerCallback):
    """Recompute `logging_steps`, `eval_steps` and `save_steps` of the state from the arguments.

    Add it before callbacks that read them. Fractions of the training, below 1, become numbers of steps, out
    of the current total.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when the checkpoint's state has been loaded, before the first step."""
        state.compute_steps(args, state.max_steps)
