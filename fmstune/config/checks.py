"""What can only be checked when the whole configuration is known; all problems are told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from fmstune.config.errors import ConfigError
from fmstune.config.schema import RunConfig

_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")
_POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "learning_rate",
    "logging_steps",
    "max_length",
)


def check_together(config: RunConfig, file: str | None) -> RunConfig:
    """The configuration, when its parts fit together. Raises `ConfigError` with all that does not."""
    problems = list(_problems(config, file))
    if problems:
        raise ConfigError(" ".join(problems))
    return config


def _problems(config: RunConfig, file: str | None) -> Iterator[str]:
    data, training = config.data, config.training

    def origin(key: str) -> str:
        return config.origins.get(key, file or "default")

    if data.eval and data.eval_fraction:
        yield f"{origin('data.eval')}: set data.eval or data.eval_fraction, not both."
    strategy = training.get("eval_strategy", "no")
    if strategy != "no" and not (data.eval or data.eval_fraction):
        yield (
            f"{origin('training.eval_strategy')}: training.eval_strategy = {strategy!r} needs evaluation "
            "data: give --eval-data, or set data.eval_fraction = 0.1."
        )
    if training.get("load_best_model_at_end") and strategy == "no":
        yield (
            f"{origin('training.load_best_model_at_end')}: training.load_best_model_at_end needs "
            'evaluations: set training.eval_strategy = "epoch" and evaluation data.'
        )
    for name in _POSITIVE:
        value = training.get(name)
        if isinstance(value, (int, float)) and value <= 0:
            key = f"training.{name}"
            yield f"{origin(key)}: {key} = {value!r} is out of range; it is more than 0."
    for key, source in (("data.train", data.train), ("data.eval", data.eval)):
        missing = _missing(source)
        if missing is not None:
            yield f"{origin(key)}: {key} = {source!r}: {missing}"


def _missing(source: str) -> str | None:
    """Why a data source that reads like a file is none; hub names and `demo` are left alone."""
    path = Path(source)
    if source in ("", "demo") or path.exists():
        return None
    looks_like_file = path.suffix in _DATA_SUFFIXES or source.startswith(("/", "./", "../", "~"))
    if not looks_like_file:
        if "/" in source:
            return None  # owner/name, perhaps: the hub will say
        return "there is no such file here, and names on the hub read owner/name."
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"there is no directory {path.parent}."
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return "there is no such file." + (f" Did you mean {path.parent / close[0]}?" if close else "")
