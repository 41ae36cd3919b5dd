"""Keep secrets out of the files that a Trainer saves besides the weights: its arguments hold the hub token,
and its log the names and strings of a user's metrics."""

from __future__ import annotations

from typing import Any

from fmstune.secrets.redaction import process_redactor
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.tuned_trainer import as_trainer


class SavesNoSecrets(PrivateHooks):
    """A mixin for a Trainer, before it."""

    def write_model(self, output_dir: str | None, state_dict: Any) -> None:
        """The Trainer's, but without the token in `training_args.bin`, which a resume does not read."""
        args = as_trainer(self).args
        token, args.hub_token = args.hub_token, None
        try:
            super().write_model(output_dir, state_dict)
        finally:
            args.hub_token = token

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's, which keeps each log for `trainer_state.json`; secrets are redacted there."""
        as_trainer(super()).log(logs, start_time)
        history = as_trainer(self).state.log_history
        hidden = process_redactor().metrics(history[-1])
        if hidden != history[-1]:
            history[-1] = hidden
