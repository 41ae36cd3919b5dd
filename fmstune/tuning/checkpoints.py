"""What a checkpoint holds besides the Trainer's own: the ledgers, so that a run resumed from it goes on
in the same run of each tracker."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.delivery.ledger import TRACKING_DIR


class LedgerCallback(TrainerCallback):
    """Copies the ledgers of the run in `directory` into each checkpoint."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            copy_ledgers(self._directory, self._directory / f"checkpoint-{state.global_step}")


def copy_ledgers(source: Path, target: Path) -> None:
    """Copy the ledgers of a run, or of a checkpoint, to another. What cannot be copied is left out:
    tracking never fails a checkpoint, and the run's own ledgers stay."""
    for ledger in (source / TRACKING_DIR).glob("*.json"):
        with contextlib.suppress(OSError):
            (target / TRACKING_DIR).mkdir(exist_ok=True)
            shutil.copy(ledger, target / TRACKING_DIR / ledger.name)
