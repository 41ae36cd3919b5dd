"""The training data as a run's configuration asks for it."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fmstune.config.methods.known import METHODS
from fmstune.config.rules.methods import divided_by, unweighted_by
from fmstune.config.schema.tables import RunConfig
from fmstune.data.cache import prepare_once
from fmstune.data.prepare import PreparedData, shuffled


def configured_data(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, skipped: Path | None = None
) -> PreparedData:
    """Prepare the data for the run's method, in the order of its rows.

    Bad rows are listed in the file `skipped`, if they may be skipped. Raises `DataError`.
    """
    training = config.training
    return prepare_once(
        config.data,
        tokenizer,
        config.max_length,
        config.seed,
        skipped,
        method=config.run.method,
        keep_end=training.get("truncation_mode") == "keep_end",
        unweighted=unweighted_by(training),
        divided_by=divided_by(training),
        as_given=training.get("train_sampling_strategy") == "sequential",
    )


def shuffled_as_configured(data: PreparedData, config: RunConfig) -> PreparedData:
    """The data with its rows shuffled, where `training.shuffle_dataset` asks for that and TRL does not do it
    itself, as it does for packed rows."""
    unused = METHODS[config.run.method].compares or config.packing
    return data if unused or not config.training.get("shuffle_dataset") else shuffled(data, config.seed)
