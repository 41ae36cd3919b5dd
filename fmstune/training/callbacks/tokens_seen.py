"""Continue the count of seen tokens after a resume: TRL counts from zero in each process."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fmstune.trackers.hf.callback import TrackerCallback
from fmstune.training.trl_compat.figures import count_tokens, tokens_seen
from fmstune.training.tuned_trainer import TunedTrainer

_TOKENS = "tokens"


class TokensSeen(TrainerCallback, ExportableState):
    """Store the count in each checkpoint, in `trainer_state.json`."""

    resumes = True
    """It reads the count from the checkpoint itself: see `PrivateHooks`."""

    def __init__(self, trainer: TunedTrainer) -> None:
        self._trainer = trainer

    def state(self) -> dict[str, Any]:
        """The stored state, in transformers' format."""
        return {"args": {}, "attributes": {_TOKENS: tokens_seen(self._trainer)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue from the checkpoint's count; an older fmstune only stored the last logged one."""
        name = type(self).__name__
        # By hand: transformers only restores callbacks with a setting, and creates new ones from their state.
        kept = state.stateful_callbacks.get(name)
        if kept is None:
            logged = (entry["num_tokens"] for entry in reversed(state.log_history) if "num_tokens" in entry)
            kept = {"args": {}, "attributes": {_TOKENS: next(logged, 0)}}
            state.stateful_callbacks[name] = kept  # without it the next checkpoint fails
        if before := int(kept["attributes"][_TOKENS]) - tokens_seen(self._trainer):
            count_tokens(self._trainer, before)
            trainer: Any = self._trainer
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, TrackerCallback):
                    callback.count_tokens_from(tokens_seen(self._trainer))
