"""The metrics that TRL's trainers collect from batches, and the messages they log."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import datasets
from accelerate.logging import MultiProcessAdapter

from fmstune.training.tuned_trainer import TunedTrainer

Figures = dict[str, list[Any]]


def _collected(trainer: Any) -> dict[str, Figures]:
    # Loggers of TRL's stable and experimental trainers.
    found: dict[str, Figures] = getattr(trainer, "_metrics", None) or getattr(trainer, "_stored_metrics", {})
    return found


def collected_metrics(trainer: Any, stage: str) -> Figures:
    """The metrics collected since the last log, to be modified in place."""
    collected = _collected(trainer)
    # Experimental trainers create missing entries; a trainer that is still being built has none.
    return collected[stage] if stage in collected or isinstance(collected, defaultdict) else {}


def tokens_seen(trainer: Any) -> int:
    """The number of training tokens that the trainer has counted in this process."""
    return int(getattr(trainer, "_total_train_tokens", 0))


def count_tokens(trainer: Any, tokens: int) -> None:
    """Count the tokens of a batch, for a TRL trainer that does not."""
    trainer._total_train_tokens = tokens_seen(trainer) + tokens
    collected_metrics(trainer, "train")["num_tokens"] = [float(trainer._total_train_tokens)]  # it is averaged


@contextlib.contextmanager
def metrics_restored(trainer: TunedTrainer) -> Iterator[None]:
    """Discard the metrics and token counts of batches within this context."""
    this: Any = trainer
    collected = {stage: dict(values) for stage, values in _collected(this).items()}
    tokens = tokens_seen(this)
    try:
        yield
    finally:
        this._total_train_tokens = tokens
        for stage, values in _collected(this).items():
            values.clear()
            values.update(collected.get(stage, {}))


_RANK = re.compile(r"^\[RANK \d+\] ")


@contextlib.contextmanager
def trl_warnings() -> Iterator[list[str]]:
    """Turn off progress bars, and collect TRL's warnings instead of printing them. TRL bypasses `warnings`,
    and transformers' `disable_progress_bars` does not cover plain tqdm."""
    said: list[str] = []
    heard = logging.Handler(logging.WARNING)
    heard.emit = lambda record: said.append(_RANK.sub("", record.getMessage()))  # type: ignore[method-assign]
    logger, bars = logging.getLogger("trl"), datasets.is_progress_bar_enabled()
    propagate, tqdm = logger.propagate, os.environ.get("TQDM_DISABLE")
    logger.addHandler(heard)
    logger.propagate = False
    # Otherwise warnings logged once per process would be missing from the next run.
    MultiProcessAdapter.warning_once.cache_clear()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield said
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagate
        if bars:
            datasets.enable_progress_bars()
        if tqdm is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm
