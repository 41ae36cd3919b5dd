"""What a Trainer saves beside the weights, without secrets: its arguments hold the hub's token, and its log
the names and texts that a user's metrics brought."""

from __future__ import annotations

from typing import Any

from fmstune.secrets.redaction import process_redactor


class SavesNoSecrets:
    """For a class beside a Trainer, before it."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The Trainer's; its `training_args.bin`, which no resume reads, is written without the token."""
        trainer: Any = self
        token, trainer.args.hub_token = trainer.args.hub_token, None
        saver: Any = super()
        try:
            saver._save(output_dir, state_dict)
        finally:
            trainer.args.hub_token = token

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's; it keeps each log for `trainer_state.json`."""
        logger: Any = super()
        logger.log(logs, start_time)
        trainer: Any = self
        kept = trainer.state.log_history[-1]
        hidden = process_redactor().metrics(kept)
        if hidden != kept:
            trainer.state.log_history[-1] = hidden
