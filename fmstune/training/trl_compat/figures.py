"""What TRL's trainers note of their batches, and what they say."""

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


def _noted(trainer: Any) -> dict[str, Figures]:
    # Of TRL's stable trainers, and of its experimental ones.
    found: dict[str, Figures] = getattr(trainer, "_metrics", None) or getattr(trainer, "_stored_metrics", {})
    return found


def noted_figures(trainer: Any, stage: str) -> Figures:
    """What the trainer has noted of its batches since the last log, to be changed in place."""
    noted = _noted(trainer)
    # Those of experimental trainers make what is missing; of a trainer that is being built there are none.
    return noted[stage] if stage in noted or isinstance(noted, defaultdict) else {}


def tokens_seen(trainer: Any) -> int:
    """How many tokens of the training the trainer has counted in this process."""
    return int(getattr(trainer, "_total_train_tokens", 0))


def count_tokens(trainer: Any, tokens: int) -> None:
    """Note that a batch with so many tokens was read, for a trainer of TRL's that does not count them."""
    trainer._total_train_tokens = tokens_seen(trainer) + tokens
    noted_figures(trainer, "train")["num_tokens"] = [float(trainer._total_train_tokens)]  # it takes a mean


@contextlib.contextmanager
def figures_restored(trainer: TunedTrainer) -> Iterator[None]:
    """As if there had been no batches within: their figures, and how many tokens were seen, are forgotten."""
    this: Any = trainer
    noted = {stage: dict(values) for stage, values in _noted(this).items()}
    tokens = tokens_seen(this)
    try:
        yield
    finally:
        this._total_train_tokens = tokens
        for stage, values in _noted(this).items():
            values.clear()
            values.update(noted.get(stage, {}))


_RANK = re.compile(r"^\[RANK \d+\] ")


@contextlib.contextmanager
def said_by_trl() -> Iterator[list[str]]:
    """Without bars, and with TRL's warnings collected instead of printed. `warnings` has none of them, and
    `disable_progress_bars` of transformers is not for tqdm's own."""
    said: list[str] = []
    heard = logging.Handler(logging.WARNING)
    heard.emit = lambda record: said.append(_RANK.sub("", record.getMessage()))  # type: ignore[method-assign]
    logger, bars = logging.getLogger("trl"), datasets.is_progress_bar_enabled()
    propagate, tqdm = logger.propagate, os.environ.get("TQDM_DISABLE")
    logger.addHandler(heard)
    logger.propagate = False
    # What was said once in this process is otherwise not said of the next run in it.
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
