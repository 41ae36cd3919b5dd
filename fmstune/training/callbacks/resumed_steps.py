"""How often a resumed run logs, evaluates and saves is what its settings say now.

The Trainer computes that at its start, and then takes the state of the checkpoint in its place, with the
numbers of the run as it was begun (transformers 5.23).
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ResumedSteps(TrainerCallback):
    """Computes `logging_steps`, `eval_steps` and `save_steps` of the state once more from the arguments.

    To be added before callbacks that read them. Shares of the training, below 1, become numbers of steps, of
    all that there are to be now.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when the checkpoint's state has been loaded, before the first step."""
        state.compute_steps(args, state.max_steps)
