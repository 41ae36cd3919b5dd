"""The number of tokens a run has seen continues at a resume: TRL counts from zero in each process."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fmstune.training.trl_compat.figures import count_tokens, tokens_seen
from fmstune.training.tuned_trainer import TunedTrainer

_TOKENS = "tokens"


class TokensSeen(TrainerCallback, ExportableState):
    """Keeps the number in each checkpoint, in `trainer_state.json`."""

    resumes = True
    """It takes the number from the checkpoint itself: see `PrivateHooks`."""

    def __init__(self, trainer: TunedTrainer) -> None:
        self._trainer = trainer

    def state(self) -> dict[str, Any]:
        """What is kept, in the form that transformers asks for."""
        return {"args": {}, "attributes": {_TOKENS: tokens_seen(self._trainer)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the checkpoint's number; one of an older fmstune has only what was last logged."""
        name = type(self).__name__
        # By hand: transformers restores callbacks only with a setting, and makes new ones of their state.
        kept = state.stateful_callbacks.get(name)
        if kept is None:
            logged = (entry["num_tokens"] for entry in reversed(state.log_history) if "num_tokens" in entry)
            kept = {"args": {}, "attributes": {_TOKENS: next(logged, 0)}}
            state.stateful_callbacks[name] = kept  # without it the next checkpoint fails
        if before := int(kept["attributes"][_TOKENS]) - tokens_seen(self._trainer):
            count_tokens(self._trainer, before)
